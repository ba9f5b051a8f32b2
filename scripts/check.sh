#!/usr/bin/env bash
# Every check that is not cargo's own: house rules, links, units, dependencies.
set -euo pipefail
cd "$(dirname "$0")"

./check-style.sh
./check-style.sh selftest
./check-links.sh
./check-units.sh
./check-deny.sh
