#!/usr/bin/env bash
# The systemd units: no mistake in them, and no more exposure than was reached
# (systemd-analyze's score x 10; lower is better).
set -euo pipefail
cd "$(dirname "$0")/.."

# Limits are the scores reached with systemd 252 (Debian 12), rounded up.
declare -A most=([dify-agent.service]=19 [dify-edge@.service]=11)

for json in packaging/docker/*.json; do
  python3 -m json.tool "$json" >/dev/null || { echo "$json: not JSON"; exit 1; }
done

if ! command -v systemd-analyze >/dev/null; then
  echo "units: skipped (1 check): systemd-analyze is not installed"
  exit 0
fi

# In a tree of its own: what is not installed here must not count as a mistake.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{etc/systemd/system,usr/bin,run,var}
cp -r packaging/systemd/. "$scratch/etc/systemd/system/"
for program in dify-agent dify-edge; do
  install -m 0755 /dev/null "$scratch/usr/bin/$program"
done
# The units of others that ours name.
for unit in docker.service network-online.target network.target time-sync.target multi-user.target \
  sockets.target sysinit.target basic.target shutdown.target; do
  printf '[Unit]\nDescription=%s\n' "$unit" >"$scratch/etc/systemd/system/$unit"
done
printf '[Service]\nExecStart=/usr/bin/dify-agent\n' >>"$scratch/etc/systemd/system/docker.service"
ln -s 'dify-edge@.service' "$scratch/etc/systemd/system/dify-edge@a.service"

found=$(systemd-analyze --root="$scratch" --man=no --recursive-errors=yes verify \
  dify-agent.service dify-edge.socket dify-edge@a.service 2>&1) || found="${found:-verify failed}"
[[ -z $found ]] || {
  echo "$found"
  exit 1
}

for unit in "${!most[@]}"; do
  score=$(systemd-analyze security --offline=true --no-pager --threshold="${most[$unit]}" \
    "packaging/systemd/$unit" 2>&1) || {
    grep -v '^✓' <<<"$score"
    exit 1
  }
  grep -o 'Overall exposure level.*' <<<"$score"
done
echo "units: ok"
