#!/bin/sh
# Install a bundle here as on a host without a network, and run `make smoke` there on each of its engines. As root, with
# Docker and Compose installed; takes 10 minutes on two cores.
#
#   scripts/release/rehearse.sh BUNDLE FOLDER     FOLDER is made, and stays
#
# It has loopback only, an empty home folder, no setting of pip, and a Docker engine of its own without images. Where
# the bundle brings Python, the host's is hidden.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ -z "${REHEARSAL:-}" ]; then
	bundle=$(realpath "$1") folder=$(realpath "$2")
	[ ! -e "$folder" ] || { echo "error: $folder exists: give a new folder" >&2 && exit 2; }
	mkdir -p "$folder-host/docker" "$folder-host/home/.docker/cli-plugins"
	for plugin in "$root/.spotter/docker/config" "$HOME/.docker" /usr/libexec/docker /usr/lib/docker; do
		[ ! -e "$plugin/cli-plugins/docker-compose" ] || break
	done
	cp -L "$plugin/cli-plugins/docker-compose" "$folder-host/home/.docker/cli-plugins/"
	# All processes of the namespace end with this shell, the engine too.
	exec unshare --net --mount --pid --fork --mount-proc env -i PATH="$PATH" HOME="$folder-host/home" LANG=C.UTF-8 \
		PIP_CONFIG_FILE=/dev/null REHEARSAL=1 sh "$0" "$bundle" "$folder"
fi

bundle=$1 folder=$2
ip link set lo up
mount -t tmpfs tmpfs /run # with sockets and process ids of the host's engine
mount --bind "$folder-host/docker" /var/lib/docker
if [ -d "$bundle/python" ]; then
	PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	for python in /usr/bin/python3* /usr/local/bin/python3*; do
		[ ! -f "$python" ] || mount --bind /dev/null "$(realpath "$python")"
	done
fi
dockerd >"$folder-host/dockerd.log" 2>&1 &
timeout 60 sh -c 'until docker info >/dev/null 2>&1; do sleep 1; done'
echo "routes: $(ip route | wc -l), images: $(docker images --quiet | wc -l), python3: $(python3 --version 2>/dev/null || echo none)"

time -p sh "$bundle/install.sh" "$folder"
cd "$folder"
engines=$(sed -n '/"engines"/,/]/s/^  "\(.*\)".*/\1/p' "$bundle/manifest.json")
for engine in $engines; do
	time -p make smoke STACK_ENGINE="$engine" OFFLINE=1
done
