#!/bin/sh
# Run a command with the model server's key in a variable. The key is read from a file, because `docker inspect` shows a
# container's own variables. Arguments: the variable's name, the command, the command's arguments.
set -eu

variable=$1
shift
file=/run/secrets/api_key
if [ -e "$file" ]; then
	# An unreadable key ends the container: a server without a key would answer anyone.
	key=$(cat "$file")
	if [ -n "$key" ]; then
		export "$variable=$key"
	elif [ "$variable" = VLLM_API_KEY ]; then
		echo "$file is empty, and vLLM without a key would answer anyone: run 'make up', which writes a key" >&2
		exit 1
	fi
	unset key
fi
exec "$@"
