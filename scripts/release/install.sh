#!/bin/sh
# Install this bundle of Spotter: sh install.sh FOLDER. It verifies everything first, and needs no network.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for python in python3.11 python3; do
	! command -v "$python" >/dev/null || exec "$python" "$here/install.py" "$@"
done
brought=$(ls "$here"/python/*.tar.gz 2>/dev/null) || {
	echo "error: this host has no Python 3, and the bundle brings none: install python3 and python3-venv" >&2
	exit 1
}
own=$(mktemp -d)
trap 'rm -rf "$own"' EXIT
tar -xzf "$brought" -C "$own"
"$own/python/bin/python3.11" "$here/install.py" "$@"
