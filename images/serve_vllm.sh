#!/bin/sh
# Run vLLM with the server's key, and with what it knows of the presets' models in its cache: it would find that out by
# importing itself once more, 8 s of a first start. What does not fit its own source it passes over.
set -eu

known=${VLLM_CACHE_ROOT:?}/modelinfos
# A cache that cannot be written is vLLM's to complain of.
if mkdir -p "$known" 2>/dev/null; then
	cp -n /spotter/modelinfos/*.json "$known" 2>/dev/null || true
fi
exec /bin/sh /spotter/with_key.sh VLLM_API_KEY vllm "$@"
