package vm_test

import (
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// The machine itself: disks of all buses, in all the ways that the other tests
// use them, seen from within.
func TestVMMachine(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Disks: []machine.Disk{{Size: 64 << 20, Serial: "at-boot"}}})
	guest.Test(t, "test/vm/machine")
}

// A guest whose first process is systemd.
func TestVMSystemd(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Systemd: true})
	var output strings.Builder
	if err := guest.Run(t.Context(), &output, "systemctl", "show", "--property=Version,SystemState"); err != nil {
		t.Fatalf("%v\n%s", err, output.String())
	}
	t.Log(output.String())
}

// putPage copies a page of the documentation into a guest, for the tests there that run
// its commands (rig.Commands), and returns the environment by which they find it.
func putPage(t *testing.T, guest *vm.Guest, page string) (environment []string) {
	t.Helper()
	const dir = "/var/tmp"
	rig.Must(t, guest.Put(t.Context(), "../../docs/"+page, dir+"/"+page))
	return []string{"RAWBLOCK_DOCS=" + dir}
}
