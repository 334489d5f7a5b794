#!/usr/bin/env bash
# Proves that the walls between the rooms hold: for each, a file that breaks it
# is put into a copy of the module, and the linter must complain.
# Usage: check-walls.sh GOLANGCI_LINT
set -euo pipefail
linter=$(realpath "$1")

# room | import that it must not have
walls=(
  "pkg/linux|github.com/rawblock-csi/rawblock-csi/pkg/volume"
  "pkg/volume|github.com/rawblock-csi/rawblock-csi/pkg/linux"
  "pkg/blockdev|golang.org/x/sys/unix"
  "pkg/blockdev|os/exec"
  "pkg/blockdev|github.com/rawblock-csi/rawblock-csi/pkg/config"
  "pkg/config|github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
  "pkg/publish|github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
  "pkg/inflight|github.com/rawblock-csi/rawblock-csi/pkg/linux"
  "pkg/gpt|github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
  "pkg/signature|github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
  "pkg/pool/file|github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
  "pkg/pool/file|github.com/rawblock-csi/rawblock-csi/pkg/config"
  "pkg/pool/disk|os/exec"
  "pkg/pool/disk|github.com/rawblock-csi/rawblock-csi/pkg/driver"
  "pkg/publish|google.golang.org/grpc/status"
  "pkg/pool/static|github.com/rawblock-csi/rawblock-csi/pkg/publish"
  "pkg/pool/static|github.com/rawblock-csi/rawblock-csi/pkg/driver"
  "pkg/driver|github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
  "pkg/driver|github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
  "pkg/socket|github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
  "pkg/program|github.com/rawblock-csi/rawblock-csi/pkg/volume"
  "pkg/lvm|os/exec"
  "pkg/lvm|github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
  "pkg/pool/lvm|os/exec"
  "pkg/pool/lvm|github.com/rawblock-csi/rawblock-csi/pkg/program"
  "pkg/pool/disk|github.com/rawblock-csi/rawblock-csi/pkg/lvm"
  "pkg/driver|github.com/rawblock-csi/rawblock-csi/pkg/lvm"
  "pkg/pool/lvm|github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
  "pkg/luks|os/exec"
  "pkg/luks|github.com/rawblock-csi/rawblock-csi/pkg/publish"
  "pkg/pool/file|github.com/rawblock-csi/rawblock-csi/pkg/luks"
  "pkg/driver|github.com/rawblock-csi/rawblock-csi/pkg/luks"
  "pkg/devcgroup|golang.org/x/sys/unix"
  "pkg/devcgroup|github.com/rawblock-csi/rawblock-csi/pkg/process"
  "pkg/process|github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
  "pkg/cri|github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
  "pkg/hotplug|github.com/rawblock-csi/rawblock-csi/pkg/publish"
  "pkg/hotplug|google.golang.org/grpc/status"
  "pkg/admin|github.com/rawblock-csi/rawblock-csi/pkg/driver"
  "pkg/admin|github.com/rawblock-csi/rawblock-csi/pkg/linux"
  "pkg/driver|github.com/rawblock-csi/rawblock-csi/pkg/admin"
  "pkg/health|golang.org/x/sys/unix"
  "pkg/health|github.com/rawblock-csi/rawblock-csi/pkg/publish"
  "pkg/pool/disk|github.com/rawblock-csi/rawblock-csi/pkg/health"
  "pkg/blockdev|github.com/rawblock-csi/rawblock-csi/pkg/health"
  "pkg/hotplug|github.com/rawblock-csi/rawblock-csi/pkg/admin"
  "pkg/nodelock|github.com/rawblock-csi/rawblock-csi/pkg/publish"
  "pkg/kubelet|github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
  "pkg/inspect|github.com/rawblock-csi/rawblock-csi/pkg/doctor"
  "pkg/inspect|github.com/rawblock-csi/rawblock-csi/pkg/admin"
  "pkg/doctor|github.com/rawblock-csi/rawblock-csi/pkg/driver"
  "pkg/doctor|github.com/rawblock-csi/rawblock-csi/pkg/config"
  "pkg/erase|golang.org/x/sys/unix"
  "pkg/pool/file|github.com/rawblock-csi/rawblock-csi/pkg/doctor"
  "pkg/admin|github.com/rawblock-csi/rawblock-csi/pkg/publish"
  "cmd/rawblockctl|github.com/rawblock-csi/rawblock-csi/pkg/linux"
  "cmd/rawblockctl|github.com/rawblock-csi/rawblock-csi/pkg/driver"
  "cmd/rawblock-csi|google.golang.org/grpc/codes"
)

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z -- go.mod go.sum .golangci.yml cmd pkg | xargs -0 cp --parents -t "$copy"
for wall in "${walls[@]}"; do
  IFS='|' read -r room import <<<"$wall"
  package=$(cd "$copy/$room" && go list -f '{{.Name}}' .)
  printf 'package %s\n\nimport _ "%s"\n' "$package" "$import" >"$copy/$room/wall.go"
  # The compiler itself refuses imports that run in circles.
  if ! said=$(cd "$copy" && "$linter" run --enable-only depguard "./$room" 2>&1) &&
    grep -qE 'wall\.go.*depguard|import cycle not allowed' <<<"$said"; then
    rm "$copy/$room/wall.go"
    continue
  fi
  printf 'This wall does not hold: %s\n%s\n' "$wall" "$said" >&2
  exit 1
done
echo "All ${#walls[@]} walls hold."
