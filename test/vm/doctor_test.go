package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// What is left over, and needs device-mapper to be.
func TestVMDoctor(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	guest.Test(t, "test/vm/doctor")
}
