#!/usr/bin/env bash
# Starts the cluster, runs the tests in it, with the flags that are given to go test,
# and takes it down, also when they failed. It tells how long each took.
set -euo pipefail
cd "$(dirname "$0")"

TIMEFORMAT='That took %0lR.'
step() {
  echo "== $*"
  time "$@"
}

trap 'step make -C ../.. cluster-down' EXIT
step make -C ../.. cluster-up
environment=$(go run -C ../../hack/cluster . env)
eval "$environment"
step go test -count=1 -v -timeout=40m "$@" .
