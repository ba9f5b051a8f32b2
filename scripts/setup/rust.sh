#!/usr/bin/env bash
# Finds a Rust toolchain that builds the workspace; says how to get one otherwise.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

wanted=$(sed -n 's/^channel *= *"\([0-9.]*\)".*/\1/p' "$root/rust-toolchain.toml")
command -v cargo >/dev/null || fail "no cargo: install rustup (https://rustup.rs, or 'apt-get install rustup' where there is one); it then fetches Rust $wanted by itself"
found=$(cd "$root" && cargo --version 2>>"$setup_log" | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
[ -n "$found" ] || fail "cargo does not run here (see $setup_log): expected Rust $wanted or newer"
oldest=$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)
[ "$oldest" = "$wanted" ] || fail "cargo is $found: expected $wanted or newer ('rustup toolchain install $wanted')"
