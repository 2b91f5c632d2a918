#!/bin/sh
# Starts Triton so that nobody without the secret may load and unload models, or reach shared memory, traces and logs:
# whoever loads a model runs code here. The secret is SENTIMENT_TRITON_KEY, or the content of the file that
# TRITON_KEY_FILE names; gateways and the scheduler have the same one.
#
# Triton takes it from its command line alone. That can be read in this container and by the accounts of the host which
# see its processes; they need a way to the port too.
set -eu
umask 077

key="${SENTIMENT_TRITON_KEY:-}"
if [ -z "$key" ] && [ -n "${TRITON_KEY_FILE:-}" ]; then
    key="$(cat "$TRITON_KEY_FILE")"
fi
unset SENTIMENT_TRITON_KEY
if [ "${#key}" -lt 16 ]; then
    echo "SENTIMENT_TRITON_KEY is missing or shorter than 16 characters: anyone who reaches this Triton could load" \
        "models, and so run code. Make one with \`openssl rand -hex 24\`, the same for gateways and the scheduler." >&2
    exit 1
fi
case "$key" in
    *[!A-Za-z0-9._~-]*)
        echo "SENTIMENT_TRITON_KEY has characters other than letters, digits and ._~-, which Triton cannot be given." >&2
        exit 1
        ;;
esac

closed=shared-memory,trace,logging,model-repository
exec "${TRITONSERVER:-/opt/tritonserver/bin/tritonserver}" "$@" \
    "--grpc-restricted-protocol=$closed:sentiment-key=$key" \
    "--http-restricted-api=$closed:sentiment-key=$key"
