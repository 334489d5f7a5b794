package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// What is left over, and needs device-mapper to be; what is known of logical volumes
// without the plugin; and how a device is taken from who holds it.
func TestVMDoctor(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	guest.Test(t, "test/vm/doctor")
	rig.Must(t, guest.Put(t.Context(), rig.Build(t, ""), rig.ProgramInGuest("")))
	environment := append(putPage(t, guest, "hot-attach.md"), "TMPDIR=/var/tmp")
	guest.TestWith(t, environment, "cmd/rawblockctl", "-test.run=^TestVM(OfflineOfLVM|ForceOfThePage)$")
}
