#!/usr/bin/env bash
# Runs the end-to-end tests, already built, with the arguments given; called by
# `make e2e` inside a bed.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
# The newest one: older builds of the same test may lie beside it.
binary=$(find "$target" -path '*/debug/deps/e2e-*' -type f -perm -u+x -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
[ -n "$binary" ] || {
    echo "the end-to-end tests are not built: run 'make e2e'" >&2
    exit 1
}
exec "$binary" "$@"
