#!/usr/bin/env bash
# Runs a command with a Docker engine: one that answers is used as it is; one
# that is missing is started and stopped again, whatever becomes of the command.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

socket=/var/run/docker.sock
answers() { as_root curl -sf --max-time 5 --unix-socket "$socket" http://docker/_ping >/dev/null 2>&1; }

if answers; then exec "$@"; fi

stop() {
    local status=$? pid=
    trap - EXIT
    [ ! -e "$pidfile" ] || pid=$(cat "$pidfile")
    if [ -n "$pid" ]; then
        say "stopping the Docker engine started here"
        as_root kill "$pid" 2>/dev/null || true
        for _ in $(seq 150); do
            as_root kill -0 "$pid" 2>/dev/null || break
            sleep 0.2
        done
        as_root rm -f "$pidfile"
    fi
    exit "$status"
}

child=
# The command gets the signal too and cleans up after itself before we do.
pass_on() { [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true; }

say "starting a Docker engine (log: target/bed/dockerd.log)"
pidfile=$bed_dir/dockerd.pid
# A pid file of a machine that went down would keep dockerd from starting.
if [ -e "$pidfile" ] && ! as_root kill -0 "$(cat "$pidfile")" 2>/dev/null; then as_root rm -f "$pidfile"; fi
trap stop EXIT
as_root setsid dockerd --pidfile "$pidfile" >"$bed_dir/dockerd.log" 2>&1 </dev/null &
for _ in $(seq 300); do
    answers && break
    sleep 0.2
done
answers || {
    tail -n 20 "$bed_dir/dockerd.log" >&2
    fail "dockerd did not answer on $socket within 60 s"
}

trap pass_on INT TERM
"$@" &
child=$!
status=0
while :; do
    wait "$child" && status=0 || status=$?
    # 128+n with the child alive: a trapped signal woke us, not its end.
    kill -0 "$child" 2>/dev/null || break
done
exit "$status"
