package vm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// A tenant writes what the host activates by itself into his volume: what becomes of the
// volume without deploy/host, and with it. With systemd as the first process, since it is
// what LVM's rules have activate a volume group.
func TestVMAttackAutoactivation(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Systemd: true})
	for _, name := range []string{"62-rawblock-csi.rules", "lvmlocal.conf"} {
		rig.Must(t, guest.Put(t.Context(), "../../deploy/host/"+name, "/var/tmp/host/"+name))
	}
	guest.TestWith(t, []string{"TMPDIR=/var/tmp", "RAWBLOCK_HOST_FILES=/var/tmp/host"}, "test/vm/autoactivation")
}
