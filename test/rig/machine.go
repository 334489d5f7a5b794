package rig

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// BusVariable names the bus of a machine that NewDisk plugs disks into: scsi, which
// is the default, nvme or virtio.
const BusVariable = "RAWBLOCK_VM_BUS"

// newMachineDisk has the machine plug a disk in.
func newMachineDisk(t testing.TB, size int64, blockSize uint32) *Disk {
	t.Helper()
	disk := &Disk{plugged: machine.Add(t, machine.Disk{
		Bus: machine.Bus(os.Getenv(BusVariable)), Size: size, LogicalBlockSize: int(blockSize),
	})}
	disk.found(t)
	t.Cleanup(func() { disk.clearViews(t) })
	return disk
}

// found takes over the name and number that the disk has got.
func (d *Disk) found(t testing.TB) {
	t.Helper()
	d.Path, d.Backing = d.plugged.Path, d.plugged.Path
	node, err := linux.OpenPath(d.Path)
	Must(t, err)
	defer node.Close()
	info, err := linux.Stat(node)
	Must(t, err)
	d.number = info.Device
}

// resizeInMachine returns once the kernel has seen the new size.
func (d *Disk) resizeInMachine(t testing.TB, size int64) {
	t.Helper()
	d.plugged.Resize(t, size)
	disk, err := os.Open(d.Path)
	Must(t, err)
	defer disk.Close()
	got := uint64(0)
	for range 3000 {
		if got, err = linux.BlockSize(disk); err != nil || got == uint64(size) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || got != uint64(size) {
		t.Fatalf("%s was resized to %d bytes and has %d (%v)", d.Path, size, got, err)
	}
}

// DevicePatterns are the paths of the disks that NewDisk makes, for devices.allow.
// Outside of a guest machine the disks of the machine are nobody's business.
func DevicePatterns() []string {
	if !machine.Inside() {
		return []string{"/dev/loop*"}
	}
	return []string{"/dev/loop*", "/dev/sd*", "/dev/nvme*", "/dev/vd*"}
}

// ProgramInGuest is where Build finds the plugin, built with the given tags, in a
// guest machine, which has no compiler: whoever starts the machine puts it there.
func ProgramInGuest(tags string) string {
	return fmt.Sprintf("/usr/local/bin/rawblock-csi-%s", tags)
}
