package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// What the plugin reports of disks that fail.
func TestVMHealth(t *testing.T) {
	t.Parallel()
	vm.Start(t, vm.Config{Udev: true}).Test(t, "test/vm/health", "-test.skip=^TestHang$")
}

// A disk that hangs, in a machine of its own: what waits for it cannot be ended.
func TestVMHealthOfAHungDisk(t *testing.T) {
	t.Parallel()
	vm.Start(t, vm.Config{Udev: true}).Test(t, "test/vm/health", "-test.run=^TestHang$", "-test.parallel=3")
}
