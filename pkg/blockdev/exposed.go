package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/mount-utils"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// CheckUnexposed returns an error that wraps volume.ErrInUse where the device is
// handed out as it is: its node is mounted somewhere, as that of a published
// volume is, or a loop device shows it, as kubelet holds one over each published
// volume. Neither is a claim, so CheckFree does not see them.
//
// It reads the mount table and asks for each loop device: use it where a disk is
// taken in, not where a volume is published.
//
// A mount of the node that a disk had which has gone counts too, where this device has
// got its number: who opens that node opens this device.
func (d *Device) CheckUnexposed() error {
	path, err := d.sysfs.NodePath(d.number)
	if err != nil {
		return err
	}
	table, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read the mount table: %w", err)
	}
	for _, m := range table {
		// The kernel makes all nodes in one filesystem (drivers/base/devtmpfs.c).
		if m.FsType == "devtmpfs" && ("/dev"+m.Root == path || d.isAt(m.MountPoint)) {
			return fmt.Errorf("%w: the node of %s is mounted at %s: it is published as a volume", volume.ErrInUse, d, m.MountPoint)
		}
	}
	files, err := filepath.Glob(d.sysfs.path("block", "loop*", "loop", "backing_file"))
	if err != nil {
		return fmt.Errorf("list loop devices: %w", err)
	}
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(backing)) == path {
			return fmt.Errorf("%w: the loop device %s shows %s", volume.ErrInUse, filepath.Base(filepath.Dir(filepath.Dir(file))), d)
		}
	}
	return nil
}

// isAt reports whether there is a node of the device at a path.
func (d *Device) isAt(path string) bool {
	info, err := linux.StatPath(path)
	return err == nil && info.IsBlockDevice() && info.Device == d.number
}
