#!/usr/bin/env bash
# Runs every fuzz target of the module for a while. Usage: fuzz.sh DURATION
set -euo pipefail

found=0
while read -r file; do
  for target in $(grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | cut -d' ' -f2); do
    found=$((found + 1))
    echo "== $target ($(dirname "$file"))"
    go test "./$(dirname "$file")" -run '^$' -fuzz "^$target\$" -fuzztime "$1"
  done
done < <(git ls-files '*_test.go')
if ((found == 0)); then
  echo "No fuzz target was found." >&2
  exit 1
fi
