#!/bin/sh
# Shows the plugin at work on volumes of its own; see hack/demo/main.go.
# Needs root, runc, busybox-static, xfsprogs, bin/rawblock-csi and bin/rawblockctl
# (make build).
set -eu
cd "$(dirname "$0")/.."
go build -o bin/rawblock-demo ./hack/demo
exec bin/rawblock-demo "$@"
