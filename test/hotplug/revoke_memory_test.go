package hotplug

import (
	"errors"
	"os"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// A mapping in memory loses the disk too: what was changed in it is not written, and
// what was not read yet cannot be. The test itself has it, beside the container.
func TestVMRevokeFromMemory(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	device := newMapping(t, "rawblock-test", disk.Path)
	node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
	ctx := rig.Context(t)
	attached, err := node.Attach(ctx, container.request(device.Disk, "/dev/xvdb"))
	rig.Must(t, err)
	release, _ := container.holdAndWrite(t, "descriptor", "/dev/xvdb")
	file, err := os.OpenFile(device.Path, os.O_RDWR, 0)
	rig.Must(t, err)
	defer file.Close()
	memory, err := unix.Mmap(int(file.Fd()), 0, rig.MiB, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	rig.Must(t, err)
	defer unix.Munmap(memory)
	rig.Must(t, unix.Madvise(memory, unix.MADV_RANDOM)) // Nothing is read ahead.
	memory[0] = 'x'

	_, err = node.Revoke(ctx, attached.ID)
	rig.Must(t, err)
	if err := unix.Msync(memory, unix.MS_SYNC); !errors.Is(err, unix.EIO) {
		t.Errorf("what was changed is written: %v", err)
	}
	if faults := faultsAt(memory, rig.MiB/2); !faults {
		t.Error("what was not read yet can be read")
	}
	if got := rig.ReadAt(t, disk.Path, 1, 0); got != "\x00" {
		t.Errorf("on the disk stands %q", got)
	}
	release()
}

// faultsAt reports whether reading a byte is a fault (SIGBUS).
func faultsAt(memory []byte, at int) (faults bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { faults = recover() != nil }()
	return memory[at] == 'x'
}
