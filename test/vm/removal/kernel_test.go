package removal

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// addSamePartition makes the kernel see a partition of the disk with the number that
// the first volume of a disk of a pool has.
func addSamePartition(t *testing.T, disk *machine.Plugged) {
	t.Helper()
	device, err := blockdev.Open(disk.Path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	rig.Must(t, device.AddPartition(2, 2*rig.MiB, victimVolume))
}

// lockAsKubelet sets a loop device up over what is published, as kubelet does for as
// long as it has it mapped (pkg/volume/util/volumepathhandler in Kubernetes).
func lockAsKubelet(t *testing.T, target string) (unlock func()) {
	t.Helper()
	backing, err := os.OpenFile(target, os.O_RDWR, 0)
	rig.Must(t, err)
	defer backing.Close()
	minor, err := linux.FreeLoop()
	rig.Must(t, err)
	loop, err := os.OpenFile(linux.LoopPath(minor), os.O_RDWR, 0)
	rig.Must(t, err)
	rig.Must(t, linux.ConfigureLoop(loop, linux.LoopConfig{Backing: backing}))
	return func() {
		rig.Must(t, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0))
		loop.Close()
	}
}
