#!/usr/bin/env bash
# Bans, licences and sources of every crate we link (deny.toml).
set -euo pipefail
cd "$(dirname "$0")/.."

deny=$(scripts/tools.sh cargo-deny)
# Warnings are findings too: an exception nobody needs any more must go.
exec "$deny" --locked check --deny warnings --hide-inclusion-graph bans licenses sources
