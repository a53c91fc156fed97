#!/bin/sh
# Check the compose files as they are written, and what Compose makes of them for each device. Needs no Docker engine.
# Exceptions, with their reasons: services/compose/.compose-lint.yml.
set -eu
cd "$(dirname "$0")/.."

bin=.spotter/envs/dev/bin
merged=$(mktemp -d)
trap 'rm -r "$merged"' EXIT

for device in cpu gpu; do
	# Without the user's .env: the defaults have to do.
	$bin/docker-compose --file compose.yaml --file "services/compose/$device.yaml" --file services/compose/ray.yaml \
		--env-file /dev/null --profile '*' config >"$merged/$device.yaml"
done
$bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml services/compose/*.yaml "$merged"/*.yaml
$bin/compose-lint check --quiet --skip-suppressed --fail-on low --strict-config \
	--config services/compose/.compose-lint.yml "$merged"/*.yaml
