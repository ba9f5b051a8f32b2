#!/usr/bin/env bash
# Everything `make test` and `make demo` need that `git clone` does not bring.
# Idempotent; names further commands to install by their Debian packages as arguments.
set -euo pipefail
here=$(dirname "$0")
"$here/packages.sh" "$@"
"$here/rust.sh"
"$here/pgvector.sh"
