#!/usr/bin/env bash
# House rules that rustc and clippy cannot hold. Prints `FILE:LINE: rule` and
# exits 1 when one is broken.
#
#   scripts/check-style.sh           this repository
#   scripts/check-style.sh selftest  breaks every rule once in a scratch tree
#                                    and fails if one of them goes unnoticed
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

# Files under version control, and new ones that will be.
files() { git ls-files --cached --others --exclude-standard -- "$@" | while read -r f; do [[ -f $f ]] && echo "$f"; done; }
rust() { files '*.rs'; }
tests_of_ours='(^|/)tests?(/|\.rs$)|_tests?\.rs$'
shipped() { rust | grep -E '^(agent|common|supervisor)/' | grep -vE "$tests_of_ours" || true; }

# grep -n over the files on stdin, `FILE:LINE: rule` for each hit. What follows
# `#[cfg(test)]` in a file is its tests, and not looked at. With EXCUSE, a
# comment that begins with it on the line above, and gives the reason, excuses.
find_in() { # PATTERN RULE [EXCUSE]
  while read -r file; do
    awk -v file="$file" -v pattern="$1" -v rule="$2" -v excuse="${3:-^nothing excuses$}" '
      /^#\[cfg\(test\)\]/ { exit }
      { code = $0; sub(/\/\/.*/, "", code) }
      code ~ pattern && above !~ excuse { print file ":" FNR ": " rule }
      { above = $0 }' "$file"
  done
}

long_files() {
  files '*.rs' '*.sh' '*.py' | while read -r file; do
    lines=$(wc -l <"$file")
    ((lines <= 500)) || echo "$file:501: longer than 500 lines ($lines)"
    [[ $(basename "$file") != main.rs || $lines -le 100 || $file == tests/* ]] ||
      echo "$file:101: main.rs is longer than 100 lines ($lines); it decides nothing"
  done
}

# Google's Secret Manager is a noun of the domain.
cupboards() {
  rust | grep -v '/secrets/manager\.rs$' | grep -E '(^|/)(utils?|helpers?|misc|managers?)(/|\.rs$)' |
    sed 's/$/:1: modules are nouns of the domain, not cupboards/' || true
}

# A verb of the command line may be called plan without being a planner.
impure_planners() {
  shipped | grep -E '(^|/)(plan|hint)[a-z_]*\.rs$' | grep -v '/cli/' |
    find_in '(^|[^a-z_])async |\.await|tokio|now\(\)|env::|rand::' \
      'planners are pure: no async, tokio, clock, environment or chance'
}

# In every select! there are as many "cancel-safe" comments as arms.
select_arms() {
  shipped | while read -r file; do
    awk -v file="$file" '
      { code = $0; sub(/\/\/.*/, "", code) }
      !inside && code ~ /select! *\{/ { inside = 1; depth = 0; arms = 0; said = 0; line = FNR }
      inside {
        if ($0 ~ /\/\/.*cancel-safe/) said++
        if (depth == 1 && code ~ /=>/ && code !~ /^ *else *=>/) arms++
        depth += gsub(/\{/, "{", code) - gsub(/\}/, "}", code)
        if (depth <= 0) {
          if (said < arms) print file ":" line ": " arms " arms of select!, " said " with a comment that says why dropping them is `cancel-safe`"
          inside = 0
        }
      }' "$file"
  done
}

# `#[error("...: {source}")]` prints the cause twice in a chain.
repeated_causes() {
  rust | while read -r file; do
    awk -v file="$file" '
      /#\[error\(/ { message = ""; line = FNR; reading = 1 }
      reading { message = message $0; if ($0 ~ /\)\]/) { reading = 0; shown = message ~ /\{0[:}]/
        if (message ~ /\{source[:}]/) print file ":" line ": the message repeats its source"
        if (message ~ /\)\] *[A-Z]/) { sub(/.*\)\] */, "", message) } else next } else next }
      shown && /^ *(\/\/|#\[(doc|error))/ { next }
      shown && /(\( *|^ *)#\[(source|from)\]/ { print file ":" line ": the message repeats its source"; shown = 0; next }
      shown && !/\( *$/ { shown = 0 }' "$file"
  done
}

# The simulator and the stand-ins are programs whose job is to be slow. What
# else must take time says so: `// sleeps: REASON`.
sleeping_tests() {
  rust | grep -E "$tests_of_ours" | grep -vE '^tests/(sim|standin)/src/|/wait\.rs$' |
    find_in '(^|[^a-z_])sleep(_until)?\(' 'tests wait for a condition (wait_for), they do not sleep' '// sleeps: .'
  rust | while read -r file; do
    { grep -nE 'thread::sleep\(' "$file" || true; } |
      sed -E "s|^([0-9]+):.*|$file:\1: a thread that sleeps holds up the runtime|"
  done
}

printing() {
  shipped | grep -vE '(^|/)(main|cli)\.rs$|/cli/' |
    find_in '(^|[^a-z_])(e?print(ln)?|dbg)!' 'only the command line prints; everything else logs'
}

silenced() {
  rust | find_in '#!?\[allow\(' 'use #[expect(lint, reason = "...")]'
  rust | while read -r file; do
    { grep -nE '^ *#\[ignore' "$file" || true; } |
      sed -E "s|^([0-9]+):.*|$file:\1: a test that is not run is none|"
  done
}

# A file without `#!` is sourced by others, whose settings hold.
careless_scripts() {
  files '*.sh' | while read -r file; do
    case $(head -1 "$file") in
      '#!/bin/sh'*) grep -q '^set -eu$' "$file" || echo "$file:1: no set -eu" ;;
      '#!'*) grep -q '^set -euo pipefail$' "$file" || echo "$file:1: no set -euo pipefail" ;;
      *) continue ;;
    esac
    [[ -x $file ]] || echo "$file:1: not executable"
  done
}

check() {
  local broken
  broken=$(
    long_files
    cupboards
    impure_planners
    select_arms
    repeated_causes
    sleeping_tests
    printing
    silenced
    careless_scripts
  )
  [[ -z $broken ]] || {
    echo "$broken"
    return 1
  }
}

# One line each: FILE, tab, text that breaks a rule, tab, what must be said.
selftest() {
  local scratch failed=0
  scratch=$(mktemp -d)
  # shellcheck disable=SC2064 # this folder
  trap "rm -rf '$scratch'" EXIT
  cd "$scratch"
  git init -q .
  while IFS=$'\t' read -r file text said; do
    rm -rf agent common tests scripts
    mkdir -p "$(dirname "$file")"
    printf '%b\n' "$text" >"$file"
    [[ $file != *.sh || $said == 'not executable' ]] || chmod +x "$file"
    if found=$(check); then
      echo "not noticed: $said"
      failed=1
    elif [[ $found != "$file:"*"$said"* || $(wc -l <<<"$found") != 1 ]]; then
      echo "expected one line with '$said' for $file, got:" "$found"
      failed=1
    fi
  done <<EOT
agent/src/a.rs	$(printf '\\n%.0s' {1..500})	longer than 500 lines
agent/src/main.rs	$(printf '\\n%.0s' {1..100})	main.rs is longer
agent/src/utils.rs	//! x	cupboards
agent/src/helpers/a.rs	//! x	cupboards
agent/src/reconcile/plan.rs	pub async fn plan() {}	planners are pure
agent/src/reconcile/plan.rs	let at = Instant::now();	planners are pure
agent/src/a.rs	tokio::select! {\n    // cancel-safe: x\n    a = b() => {}\n    c = d() => {}\n}	2 arms of select!, 1 with
agent/src/a.rs	#[error("x: {source}")]\nA { source: E },	repeats its source
agent/src/a.rs	#[error("x: {0}")]\n/// doc\nA(#[source] E),	repeats its source
agent/src/a.rs	#[error(\n    "x: {0}"\n)]\nA(\n    #[from]\n    E),	repeats its source
tests/e2e/a.rs	tokio::time::sleep(x).await;	do not sleep
agent/tests/a.rs	sleep(x).await;	do not sleep
tests/e2e/a.rs	// sleeps:\nsleep(x).await;	do not sleep
agent/src/a.rs	std::thread::sleep(x);	holds up the runtime
agent/src/a.rs	println!("x");	only the command line prints
agent/src/a.rs	eprintln!("x");	only the command line prints
agent/src/a.rs	#[allow(dead_code)]	use #[expect
tests/e2e/a.rs	#[ignore]	not run is none
scripts/a.sh	#!/bin/bash\ntrue	no set -euo pipefail
scripts/a.sh	#!/bin/bash\nset -euo pipefail	not executable
EOT
  # And what is right stays unnoticed.
  rm -rf agent common tests scripts
  mkdir -p agent/src/cli tests/sim/src
  printf '%s\n' 'select! {' '    // cancel-safe: x' '    a = b() => match a {' '        1 => {}' '        _ => {}' '    },' \
    '    else => {}' '}' '#[error("x {0}")]' 'A(String),' '// println!' '#[cfg(test)]' 'println!("x");' >agent/src/a.rs
  mkdir -p agent/tests
  printf '%s\n' 'println!("x");' >agent/tests/guest.rs
  printf '%s\n' 'async fn plan() { println!("x") }' >agent/src/cli/plan.rs
  printf '%s\n' 'sleep(x).await;' >tests/sim/src/a.rs
  printf '%s\n' '// sleeps: a slow line' 'sleep(x).await;' '#[error("ask about {0}")]' \
    'Ask(&str, #[source] E),' >tests/a.rs
  if ! found=$(check); then
    echo "wrongly noticed: $found"
    failed=1
  fi
  ((failed == 0)) && echo "style: every rule notices"
  return "$failed"
}

case ${1:-check} in
  check) cd "$root" && check && echo "style: ok" ;;
  selftest) selftest ;;
  *)
    echo "usage: scripts/check-style.sh [selftest]" >&2
    exit 64
    ;;
esac
