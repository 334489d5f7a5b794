package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// Disks that are pulled out while volumes are on them.
func TestVMRemoval(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	guest.Test(t, "test/vm/removal")
}
