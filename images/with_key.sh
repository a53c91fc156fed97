#!/bin/sh
# Run a command that finds the model server's key in a variable: given to the container as one, `docker inspect` would
# show it. Its arguments: the variable's name, the command, and the command's own.
set -eu

variable=$1
shift
file=/run/secrets/api_key
if [ -e "$file" ]; then
	# Ends the container where the key cannot be read: a server without it would answer anyone.
	key=$(cat "$file")
	if [ -n "$key" ]; then
		export "$variable=$key"
	elif [ "$variable" = VLLM_API_KEY ]; then
		echo "$file is empty, and vLLM without a key would answer anyone: 'make up' writes one" >&2
		exit 1
	fi
	unset key
fi
exec "$@"
