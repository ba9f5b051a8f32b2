# Sourced by the other scripts here: progress for people, noise to a log file.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bed_dir=$root/target/bed
mkdir -p "$bed_dir"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
setup_log=$bed_dir/setup.log

say() { printf '  %s\n' "$*" >&2; }

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Runs a noisy command; its output is shown only when it fails.
quietly() {
    local mark
    mark=$(wc -l 2>/dev/null <"$setup_log" || echo 0)
    printf '$ %s\n' "$*" >>"$setup_log"
    if ! "$@" >>"$setup_log" 2>&1 </dev/null; then
        tail -n "+$((mark + 1))" "$setup_log" | tail -n 30 >&2
        fail "'$*' failed; the whole log is $setup_log"
    fi
}

# Runs a command as root, through sudo where we are not.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -E "$@"
    else
        fail "'$*' needs root: run as root or install sudo"
    fi
}
