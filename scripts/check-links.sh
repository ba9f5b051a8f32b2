#!/usr/bin/env bash
# Every relative link in our Markdown leads to a file of this repository, and
# ADRs are numbered without gaps or doubles.
set -euo pipefail
cd "$(dirname "$0")/.."

broken=$(
  git ls-files --cached --others --exclude-standard -- '*.md' | while read -r page; do
    folder=$(dirname "$page")
    { grep -noE '\]\([^)#:]+(#[^)]*)?\)' "$page" || true; } | while IFS=: read -r line link; do
      target=${link#*(}
      target=${target%%[)#]*}
      [[ -e $folder/$target ]] || echo "$page:$line: leads nowhere: $target"
    done
  done
  expected=1
  for adr in docs/adr-[0-9]*.md; do
    number=$(basename "$adr" | cut -d- -f2)
    [[ $number == "$(printf %04d "$expected")" ]] || echo "$adr:1: expected number $(printf %04d "$expected")"
    expected=$((expected + 1))
  done
)
[[ -z $broken ]] || {
  echo "$broken"
  exit 1
}
echo "links: ok"
