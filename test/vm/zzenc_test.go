package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

func TestZZEnc(t *testing.T) {
	guest := vm.Start(t, vm.Config{Udev: true})
	rig.Must(t, guest.Put(t.Context(), rig.Build(t, "crashpoints"), rig.ProgramInGuest("crashpoints")))
	guest.Test(t, "test/vm/encryption", "-test.run=TestLife|TestGrowth$|TestKeyOfTheNode|TestKeysAreSecret/logical")
}
