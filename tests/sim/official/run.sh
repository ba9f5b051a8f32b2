#!/bin/sh
# Drives `gcp-sim` with Google's own Python clients. Usage: run.sh PATH-TO-gcp-sim
# The clients live in a virtual environment under $XDG_CACHE_HOME (or ~/.cache), made on first use; with NO_NETWORK=1
# a missing environment is reported and skipped, by exit status 77.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
sim=${1:?usage: run.sh PATH-TO-gcp-sim}
venv=${XDG_CACHE_HOME:-$HOME/.cache}/dify-fleet/official-$(cksum <"$here/requirements.txt" | cut -d' ' -f1)
if [ ! -e "$venv/complete" ]; then
    if [ "${NO_NETWORK:-0}" = 1 ]; then
        echo "official clients: skipped, no virtual environment at $venv" >&2
        exit 77
    fi
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    : >"$venv/complete"
fi
exec "$venv/bin/python" "$here/check.py" "$sim"
