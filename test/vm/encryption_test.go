package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// Encrypted volumes: the real cryptsetup, and dm-crypt.
func TestVMEncryption(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	rig.Must(t, guest.Put(t.Context(), rig.Build(t, "crashpoints"), rig.ProgramInGuest("crashpoints")))
	guest.TestWith(t, putPage(t, guest, "encryption.md"), "test/vm/encryption", "-test.skip=^TestKilled")
	guest.Test(t, "test/vm/encryption", "-test.run=^TestKilled") // It derives keys at their real cost.
}
