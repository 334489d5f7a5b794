#!/usr/bin/env bash
# Installs what the cluster needs and a fresh Debian machine lacks. Of containerd
# only the programs are wanted, and not the service: each node starts its own.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

# A command, and the Debian package that has it.
needs=(
  "containerd containerd"
  "runc runc"
  "/usr/lib/cni/bridge containernetworking-plugins"
  "busybox busybox-static" # static: it is all there is in the image
  "ip iproute2"
  "iptables iptables"      # for the bridge plugin
  "nft nftables"           # for kube-proxy
  "conntrack conntrack"
  "sysctl procps"
  "nsenter util-linux"
  "losetup mount"          # kubelet runs it on what is published
  "mkfs.xfs xfsprogs"      # snapshots share data there (reflink)
  "git git"
  "jq jq"                  # in the commands of docs/uninstall.md
)

missing=()
for need in "${needs[@]}"; do
  read -r command package <<<"$need"
  command -v "$command" >/dev/null || missing+=("$package")
done
((${#missing[@]})) || exit 0

echo "Missing: ${missing[*]}"
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "Install them, or run this as root on Debian." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends "${missing[@]}"
if [[ " ${missing[*]} " == *" containerd "* && -d /run/systemd/system ]]; then
  systemctl disable --now containerd.service
fi
