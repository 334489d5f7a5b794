package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// Disks that fail while volumes are on them.
func TestVMIOErrors(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	guest.Test(t, "test/vm/ioerrors", "-test.skip=^TestHung")
}

// Disks that do not answer. What waits for them cannot be ended, so they have a machine
// of their own.
func TestVMHungDisk(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	rig.Must(t, guest.Put(t.Context(), rig.Build(t, ""), rig.ProgramInGuest("")))
	guest.Test(t, "test/vm/ioerrors", "-test.run=^TestHung")
}
