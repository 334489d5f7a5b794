package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// What is left over, and needs device-mapper to be; and what is known of logical volumes
// without the plugin.
func TestVMDoctor(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	guest.Test(t, "test/vm/doctor")
	rig.Must(t, guest.Put(t.Context(), rig.Build(t, ""), rig.ProgramInGuest("")))
	guest.TestWith(t, []string{"TMPDIR=/var/tmp"}, "cmd/rawblockctl", "-test.run=^TestVMOfflineOfLVM$")
}
