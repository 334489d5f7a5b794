package driver

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/mount-utils"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
)

// probe looks whether the node is as the plugin needs it.
type probe struct {
	paths kubeletDir
	sysfs blockdev.Sysfs
	// ownNamespace says that the plugin has a mount namespace of its own: what
	// it mounts must propagate to reach kubelet.
	ownNamespace bool
}

// newProbe finds out how the plugin sees kubelet's directory.
func newProbe(options Options) (probe, error) {
	paths, err := newKubeletDir(options.KubeletDir)
	if err != nil || !hasOwnMountNamespace() {
		return probe{paths: paths, sysfs: options.Sysfs}, err
	}
	mounts, err := readMounts()
	if err == nil {
		paths.narrow(mounts)
	}
	return probe{paths: paths, sysfs: options.Sysfs, ownNamespace: true}, err
}

func (p probe) check() error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	return errors.Join(p.sysfs.Check(), p.checkDev(mounts), p.checkKubeletDir(mounts))
}

func readMounts() ([]mount.MountInfo, error) {
	mounts, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return mounts, nil
}

// checkDev looks whether /dev is the kernel's, where the node of a new device
// appears by itself, and not one that a container runtime made.
func (p probe) checkDev(mounts []mount.MountInfo) error {
	dev := mountOf("/dev", mounts)
	if dev.FsType != "devtmpfs" {
		return fmt.Errorf("/dev is of type %q, not the host's devtmpfs: mount the host's /dev into the plugin's container", dev.FsType)
	}
	return nil
}

// checkKubeletDir looks whether what the plugin mounts is seen by kubelet: where kubelet
// has block volumes published. Nothing else of its directory need be there.
func (p probe) checkKubeletDir(mounts []mount.MountInfo) error {
	if !p.ownNamespace {
		return nil
	}
	at := mountOf(p.paths.devices(), mounts)
	for _, field := range at.OptionalFields {
		if strings.HasPrefix(field, "shared:") {
			return nil
		}
	}
	return fmt.Errorf("%s lies on the mount %s, which is not shared, so kubelet would not see what is published there: mount this directory of the host at the same path, with mountPropagation: Bidirectional",
		p.paths.devices(), at.MountPoint)
}

// mountOf returns the mount that a path without links lies on: of those at the
// longest mount point above it, the one made last.
func mountOf(path string, mounts []mount.MountInfo) mount.MountInfo {
	var found mount.MountInfo
	for _, m := range mounts {
		above := m.MountPoint == path || isBelow(path, m.MountPoint)
		if above && len(m.MountPoint) >= len(found.MountPoint) {
			found = m
		}
	}
	return found
}

// hasOwnMountNamespace reports whether this process sees another mount namespace
// than the node's first process. A container without the host's process
// namespace sees itself, or its sandbox, as the first.
func hasOwnMountNamespace() bool {
	if os.Getpid() == 1 {
		return true
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	first, firstErr := os.Readlink("/proc/1/ns/mnt")
	return err != nil || firstErr != nil || own != first
}
