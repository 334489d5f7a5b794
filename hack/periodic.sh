#!/usr/bin/env bash
# Runs every suite whole, one after the other, and goes on where one fails. At the end it
# prints one summary: for each suite whether it passed, how many tests did, and how long
# it took. The logs are in bin/periodic.
set -uo pipefail
cd "$(dirname "$0")/.."
export CI=true

logs=$PWD/bin/periodic
mkdir -p "$logs"
RAWBLOCK_NOT_CHECKED=$logs/not-checked
: >"$RAWBLOCK_NOT_CHECKED"
export RAWBLOCK_NOT_CHECKED

summary=()
failed=0
# suite NAME COMMAND...: a suite that skips a test has failed, as nothing may be lacking.
suite() {
  local name=$1 log=$logs/$1.log start=$SECONDS state=passed
  shift
  echo "::: $name: $*"
  if ! "$@" >"$log" 2>&1; then
    state=FAILED
  elif grep -qE '^\s*--- SKIP|no tests to run' "$log"; then
    state="FAILED (skipped or no tests)"
  fi
  if [[ $state != passed ]]; then
    failed=$((failed + 1))
    grep -E '^\s*--- (FAIL|SKIP)|^FAIL|no tests to run' "$log" || tail -n 30 "$log"
  fi
  summary+=("$(printf '%-14s %-8s %5d passed %4d failed %6ds' "$name" "$state" \
    "$(grep -cE '^\s*--- PASS' "$log")" "$(grep -cE '^\s*--- FAIL' "$log")" $((SECONDS - start)))")
}

suite build make build
suite test make test TESTFLAGS=-v
suite attack make attack TESTFLAGS=-v
suite runtimes make runtimes TESTFLAGS=-v
suite doctor make doctor TESTFLAGS=-v
suite guests make test-vm TESTFLAGS=-v
suite crash make crash TESTFLAGS=-v
suite demo make demo
suite demo-hotplug make demo-hotplug
suite cluster make e2e
suite external make e2e-external
suite cluster-down make cluster-down
suite verify make verify
suite fuzz make fuzz
suite bench make bench

echo
printf '%s\n' "${summary[@]}"
tail -n 1 "$logs/external.log"
echo "Not checked:"
sort -u "$RAWBLOCK_NOT_CHECKED"
echo "$failed suites failed; the logs are in ${logs#"$PWD"/}"
((failed == 0))
