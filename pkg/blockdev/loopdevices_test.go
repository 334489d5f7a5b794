package blockdev_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// find returns the loop device with a path.
func find(t *testing.T, tree blockdev.Sysfs, path string) blockdev.LoopDevice {
	t.Helper()
	all, err := tree.LoopDevices()
	rig.Must(t, err)
	at := slices.IndexFunc(all, func(l blockdev.LoopDevice) bool { return l.Path == path })
	if at < 0 {
		t.Fatalf("%s is not among %+v", path, all)
	}
	return all[at]
}

// A loop device is told with what it shows, and only that one is detached.
func TestLoopDevices(t *testing.T) {
	tree := blockdev.NewSysfs("/sys")
	first, second := rig.NewLoop(t, rig.MiB, 512), rig.NewLoop(t, rig.MiB, 512)
	found := find(t, tree, first.Path)
	if found.Number != first.Number() || found.Label != "rawblock-test" || found.Backing != first.Backing || found.Deleted || found.IsView || found.Device != (linux.DeviceNumber{}) {
		t.Errorf("found %+v", found)
	}
	mistaken := find(t, tree, second.Path)
	mistaken.Path, mistaken.Number = found.Path, found.Number
	if err := tree.DetachLoop(mistaken); !errors.Is(err, volume.ErrMismatch) {
		t.Errorf("another one in its place is detached with %v", err)
	}
	mounted := rig.NewLoop(t, 8*rig.MiB, 512)
	mounted.Mount(t, "ext4")
	if err := tree.DetachLoop(find(t, tree, mounted.Path)); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("one that is mounted is detached with %v", err)
	}
	rig.Must(t, os.Remove(first.Backing))
	if found = find(t, tree, first.Path); !found.Deleted || found.Backing != first.Backing {
		t.Errorf("with its file deleted it is %+v", found)
	}
	rig.Must(t, tree.DetachLoop(found))
	rig.Must(t, tree.DetachLoop(found)) // It may be repeated.
}
