#!/usr/bin/env bash
# Installs the Debian packages the test bed is made of, where they are missing.
# Services that packages start by themselves are kept from starting: the bed
# runs its own servers, on its own data and free ports.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

command -v apt-get >/dev/null || fail "only Debian and Ubuntu are set up automatically; install Docker, docker-registry, Redis and PostgreSQL by hand"

# What a command needs, not a package name alone: Docker's own packages provide
# dockerd as well as the distribution's do, and must not be replaced.
missing=()
need() { # COMMAND PACKAGE...
    local command=$1
    shift
    command -v "$command" >/dev/null || missing+=("$@")
}

need dockerd docker.io
need docker-registry docker-registry
need redis-server redis-server
need iptables iptables
need ip iproute2
need setpriv util-linux
need cc gcc libc6-dev
need make make
need git git
need curl curl
need python3 python3
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql postgresql-contrib)
compgen -G '/usr/share/postgresql/*/extension/uuid-ossp.control' >/dev/null || missing+=(postgresql-contrib)
for extra in "$@"; do
    need "$extra" "$extra"
done

[ ${#missing[@]} -gt 0 ] || exit 0

say "installing ${missing[*]}"
policy=/usr/sbin/policy-rc.d
placed=
restore() { [ -z "$placed" ] || as_root rm -f "$policy"; }
trap restore EXIT
trap 'exit 130' INT TERM
if [ ! -e "$policy" ]; then
    placed=yes
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
# No default cluster either: nothing here uses it.
as_root mkdir -p /etc/postgresql-common/createcluster.d
[ -e /etc/postgresql-common/createcluster.d/dify-fleet.conf ] ||
    echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.d/dify-fleet.conf >/dev/null
quietly as_root apt-get update
quietly as_root apt-get install -y --no-install-recommends "${missing[@]}"
