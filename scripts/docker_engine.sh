#!/bin/sh
# Have a Docker engine with Compose on this machine: start one where none answers, install one where there is none.
# For CI and other bare Debian or Ubuntu machines; as root. Elsewhere follow Docker's own instructions.
#
#   scripts/docker_engine.sh start   exit 0: `docker info` answers; 1: it cannot be had here, the reason is on stderr
#   scripts/docker_engine.sh stop    stop the engine that `start` started, and no other
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
state=$root/.spotter/docker
pid_file=$state/dockerd.pid
log=$state/dockerd.log

fail() {
	echo "error: $*" >&2
	exit 1
}

answers() {
	docker info >/dev/null 2>&1
}

# The process of the engine that was started here; nothing where it has ended. The file may outlive it, and by then its
# number may be another program's.
own_engine() {
	pid=$(cat "$pid_file" 2>/dev/null) || return 0
	[ "$(cat "/proc/$pid/comm" 2>/dev/null)" != dockerd ] || echo "$pid"
}

install_engine() {
	[ "$(id -u)" = 0 ] || fail "no Docker engine answers, and only root can install one: install Docker, or sudo"
	command -v apt-get >/dev/null || fail "no Docker engine answers, and there is no apt-get: install Docker"
	echo "installing a Docker engine from the distribution's packages"
	{ apt-get update && apt-get install -y --no-install-recommends docker.io iptables mmdebstrap; } >"$state/apt.log" 2>&1 ||
		fail "the engine's packages cannot be installed: see $state/apt.log"
}

start_engine() {
	[ "$(id -u)" = 0 ] || fail "no Docker engine answers, and only root can start one: start Docker, or use sudo"
	echo "starting a Docker engine"
	[ -n "$(own_engine)" ] || rm -f "$pid_file" # which dockerd would take for another one's
	# In a session of its own, without this one's input and output: it outlives the command that started it.
	setsid nohup dockerd --pidfile "$pid_file" >"$log" 2>&1 </dev/null &
	for _ in $(seq 120); do
		answers && return
		kill -0 $! 2>/dev/null || break
		sleep 0.5
	done
	tail -n 5 "$log" >&2
	fail "dockerd does not come up here: see $log"
}

# Compose from the development environment, where the host's docker has none. Only Spotter's own commands look here.
link_compose() {
	docker compose version >/dev/null 2>&1 && return
	[ -x "$root/.spotter/envs/dev/bin/docker-compose" ] || python3 "$root/scripts/environments.py" dev
	mkdir -p "$state/config/cli-plugins"
	ln -sf "$root/.spotter/envs/dev/bin/docker-compose" "$state/config/cli-plugins/docker-compose"
}

case ${1:-} in
start)
	mkdir -p "$state"
	if ! { command -v docker && command -v dockerd && command -v iptables; } >/dev/null; then
		answers || install_engine
	fi
	answers || start_engine
	link_compose
	echo "Docker engine $(docker version --format '{{.Server.Version}}') answers"
	;;
stop)
	pid=$(own_engine)
	if [ -n "$pid" ] && kill "$pid"; then
		for _ in $(seq 60); do
			[ -e "$pid_file" ] || break
			sleep 0.5
		done
		echo "stopped the Docker engine that was started here"
	fi
	;;
*)
	sed -n '2,7s/^# \{0,1\}//p' "$0"
	[ "${1:-}" = --help ] || exit 2
	;;
esac
