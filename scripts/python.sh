#!/bin/sh
# Run a script that needs Python alone, such as environments.py: what a fresh clone runs first. PYTHON names another
# interpreter than python3.
set -eu

case $(uname -s) in
MINGW* | MSYS* | CYGWIN*)
	echo "error: Spotter does not run on Windows itself: install WSL 2 (wsl --install) and run it there, on Linux" >&2
	exit 1
	;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
# The bundle's Python and wheels (make bundle), where this folder was installed from one.
[ ! -d "$root/.spotter/python/bin" ] || export PATH="$root/.spotter/python/bin:$PATH"
[ ! -d "$root/.spotter/wheels" ] ||
	export PIP_FIND_LINKS="$root/.spotter/wheels${PIP_FIND_LINKS:+ $PIP_FIND_LINKS}"

python=${PYTHON:-python3}
unset PYTHON # of this program alone
command -v "$python" >/dev/null || {
	echo "error: $python is not installed: install Python 3 and its venv module (Debian, Ubuntu: the packages" \
		"python3 and python3-venv), or set PYTHON to an interpreter" >&2
	exit 1
}

# STACK_OFFLINE, of the environment or else .env, in the words of pip and uv: they run before Spotter's own code can.
offline=${STACK_OFFLINE-$(sed -n 's/^STACK_OFFLINE=//p' "$root/.env" 2>/dev/null || true)}
case $offline in
1 | true | True | TRUE | yes | on) export PIP_NO_INDEX=1 UV_OFFLINE=1 UV_PYTHON_DOWNLOADS=never ;;
esac

exec "$python" "$@"
