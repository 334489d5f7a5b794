package vm_test

import (
	"fmt"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// onRealDisks are the packages whose tests run on the disks of a machine as they
// do on loop devices.
var onRealDisks = []struct {
	name string
	// everyBus says that what they do differs with the bus: how partitions are named,
	// what is discarded, when an index is given out again.
	everyBus bool
	// some says which of its tests run (-test.run) or do not (-test.skip), and why.
	some, why string
}{
	{"pkg/linux", true, "-test.run=^Test(Raw|ZeroOut|Partitions|BlockDevice|DiskSeq)", "the others do not need a disk"},
	{"pkg/blockdev", true, "", ""},
	{"pkg/signature", false, "-test.run=^TestEitherCopy", "the others have files; test/vm/identity has the tools on disks"},
	{"pkg/gpt", true, "", ""},
	{"pkg/pool/static", false, "", ""},
	{
		"pkg/pool/disk", false, "-test.skip=^Test(KilledAfterEachStep|Contract|NoEntryLeft|DiskThatReturnsUnderAnotherName|SwappedDisk)$",
		"one builds a program, two take long and have nothing of the disk; test/vm/identity has disks that change places",
	},
	{"pkg/publish", false, "", ""},
	{"test/node", false, "-test.skip=^Test(SystemCallsDoNotGrow|KilledBetween|StoppedAndStarted|ManyVolumes)", "they build the plugin, or have more disks than a machine"},
}

// The tests of packages that handle devices, on real disks.
func TestVMPackages(t *testing.T) {
	t.Parallel()
	for _, bus := range []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio} {
		t.Run(string(bus), func(t *testing.T) {
			// Without udev, as these tests have it elsewhere: it has the kernel forget
			// partitions that are in no table, and opens what they count the users of.
			guest := vm.Start(t, vm.Config{})
			for _, tested := range onRealDisks {
				if !tested.everyBus && bus != machine.SCSI {
					continue
				}
				t.Run(tested.name, func(t *testing.T) {
					var args []string
					if tested.some != "" {
						t.Logf("%s: %s", tested.some, tested.why)
						args = append(args, tested.some)
					}
					if bus == machine.NVMe {
						args = append(args, "-test.skip=^TestResizeTakesOverTheSize$") // QEMU has none that grow.
					}
					guest.TestWith(t, []string{fmt.Sprintf("%s=%s", rig.BusVariable, bus), "TMPDIR=/var/tmp"}, tested.name, args...)
				})
			}
		})
	}
}
