package blockdev_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestPublishedDiskIsExposed(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device := open(t, disk.Path)
	rig.Must(t, device.CheckUnexposed())
	target := t.TempDir() + "/target"
	rig.Must(t, os.WriteFile(target, nil, 0o600))
	rig.Must(t, unix.Mount(disk.Path, target, "", unix.MS_BIND, ""))
	t.Cleanup(func() { rig.UnmountAll(t, target) })
	wantExposed(t, device.CheckUnexposed(), "mounted at "+target)
	rig.Must(t, unix.Unmount(target, 0))
	rig.Must(t, device.CheckUnexposed())
}

func TestDiskBelowALoopDeviceIsExposed(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device := open(t, disk.Path)
	view, err := device.View("owner")
	rig.Must(t, err)
	t.Cleanup(func() { rig.Must(t, sysfs.ReleaseLoop(view.LoopID())) })
	wantExposed(t, device.CheckUnexposed(), strings.TrimPrefix(view.Node().Name(), "/dev/"))
	view.Close()
	rig.Must(t, sysfs.ReleaseLoop(view.LoopID()))
	rig.Must(t, device.CheckUnexposed())
}

func wantExposed(t *testing.T, err error, says string) {
	t.Helper()
	if !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want %v with %q", err, volume.ErrInUse, says)
	}
}
