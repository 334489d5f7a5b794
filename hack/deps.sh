#!/usr/bin/env bash
# Installs what the tests and the demo need and a fresh Debian machine lacks.
set -euo pipefail

# A command, and the Debian package that has it.
needs=(
  "runc runc"
  "crun crun"              # the other runtime, whose device programs are others
  "systemctl systemd"      # as the first process of a container
  "busybox busybox-static" # static: it is all there is in a test container
  "containerd containerd"  # what kubelet tells to run pods
  "ctr containerd"
  "losetup mount"          # kubelet runs it on what is published
  "mkfs.ext4 e2fsprogs"
  "mkfs.xfs xfsprogs"      # filesystems that share blocks (reflink)
  "mkfs.btrfs btrfs-progs"
  "mkfs.vfat dosfstools"   # what a disk that is in use looks like
  "sfdisk fdisk"           # judges of the partition tables
  "sgdisk gdisk"
  "cryptsetup cryptsetup-bin"
  "fio fio"                # for the benchmarks
  "strace strace"          # to see what a publish does
  "qemu-system-x86_64 qemu-system-x86" # guest machines, put together from Debian's packages
  "cpio cpio"
  "gcc gcc"                # for the race detector
)

missing=()
for need in "${needs[@]}"; do
  read -r command package <<<"$need"
  command -v "$command" >/dev/null || missing+=("$package")
done
[[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
((${#missing[@]})) || exit 0

echo "Missing: ${missing[*]}"
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "Install them, or run this as root on Debian." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends "${missing[@]}"
# Of containerd only the programs are wanted, and not the service: the tests start
# their own.
if [[ " ${missing[*]} " == *" containerd "* && -d /run/systemd/system ]]; then
  systemctl disable --now containerd.service
fi
