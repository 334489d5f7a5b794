#!/bin/sh
# Shows the plugin at work on a disk of its own; see hack/demo/main.go.
# Needs root, runc, busybox-static and bin/rawblock-csi (make build).
set -eu
cd "$(dirname "$0")/.."
go build -o bin/rawblock-demo ./hack/demo
exec bin/rawblock-demo "$@"
