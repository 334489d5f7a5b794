package blockdev

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"k8s.io/mount-utils"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// CheckFree returns an error that wraps volume.ErrInUse and names the user
// where the host uses the device, the disk that it is a partition of, or a
// partition of it: a mounted filesystem, swap, LVM, RAID, device-mapper, or any
// program that has claimed it.
//
// Errors: volume.ErrNotFound where the device has gone.
//
// The kernel decides: everything of the kernel that uses a block device holds
// an exclusive claim on it, in whatever mount namespace, and only one claim can
// be held. sysfs and the mount table are read to name the user, and only then.
func (d *Device) CheckFree() error {
	claim, err := linux.Reopen(d.node, true)
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%w: %s is %s", volume.ErrInUse, d, d.sysfs.explainClaim(d.number))
	}
	if IsGone(err) {
		return d.gone(err)
	}
	if err != nil {
		return fmt.Errorf("claim device %s to see that it is free: %w", d.number, err)
	}
	claim.Close()
	return nil
}

// explainClaim names the users of a claimed device as well as they can be found.
func (s Sysfs) explainClaim(number linux.DeviceNumber) string {
	const unknown = "claimed exclusively by the kernel or another program (see lsblk, /proc/swaps and fuser on the host)"
	dirs, err := s.related(number)
	if err != nil {
		return unknown
	}
	for _, explain := range []func([]string) string{holders, mounts, swaps, s.btrfs} {
		if user := explain(dirs); user != "" {
			return user
		}
	}
	return unknown
}

// related returns the directories of the device, of its partitions, and of the disk
// that it is a partition of.
func (s Sysfs) related(number linux.DeviceNumber) ([]string, error) {
	disk, err := s.disk(number)
	if err != nil {
		return nil, err
	}
	dir := s.device(number)
	if disk != dir {
		return []string{dir, disk}, nil
	}
	partitions, err := filepath.Glob(dir + "/*/partition")
	if err != nil {
		return nil, fmt.Errorf("list the partitions of block device %s: %w", number, err)
	}
	dirs := []string{dir}
	for _, partition := range partitions {
		dirs = append(dirs, filepath.Dir(partition))
	}
	return dirs, nil
}

// holders names the block devices that are built upon those in the directories, and how to
// end them.
func holders(dirs []string) string {
	var found []Holder
	for _, dir := range dirs {
		found = holdersAbove(dir, found, 0)
	}
	if len(found) == 0 {
		return ""
	}
	return "held by " + DescribeHolders(found) + "; " + RemedyForHolders(found)
}

// mounts names the place where a device in the directories is mounted, as far as
// the plugin's own mount namespace shows it.
func mounts(dirs []string) string {
	table, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for _, dir := range dirs {
		number, err := linux.ReadFile(dir + "/dev")
		if err != nil {
			continue
		}
		for _, m := range table {
			if fmt.Sprintf("%d:%d", m.Major, m.Minor) == strings.TrimSpace(number) {
				return "mounted at " + m.MountPoint + "; unmount it first"
			}
		}
	}
	return ""
}

// swaps names the device in the directories that is used as swap (proc_swaps(5)).
func swaps(dirs []string) string {
	table, err := linux.ReadFile("/proc/swaps")
	if err != nil {
		return ""
	}
	for _, dir := range dirs {
		node, err := nodePath(dir)
		if err != nil {
			continue
		}
		for line := range strings.Lines(table) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == node {
				return "used as swap; end that with swapoff " + node + " first"
			}
		}
	}
	return ""
}

// btrfs names the filesystem that a device in the directories belongs to. It may have
// several devices, and the mount table has a number of its own for it
// (fs/btrfs/sysfs.c).
func (s Sysfs) btrfs(dirs []string) string {
	for _, dir := range dirs {
		node, err := nodePath(dir)
		if err != nil {
			continue
		}
		found, err := filepath.Glob(s.path("fs", "btrfs", "*", "devices", filepath.Base(node)))
		if err == nil && len(found) > 0 {
			id := filepath.Base(filepath.Dir(filepath.Dir(found[0])))
			return fmt.Sprintf("part of the btrfs filesystem %s, which is mounted; unmount it first", id)
		}
	}
	return ""
}
