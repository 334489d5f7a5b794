package vm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// identityTests is the package of the tests below.
const identityTests = "test/vm/identity"

// Identity and safety on real disks, without udev and with it.
func TestVMIdentity(t *testing.T) {
	t.Parallel()
	t.Run("without udev", func(t *testing.T) {
		guest := vm.Start(t, vm.Config{})
		guest.Test(t, identityTests, "-test.skip=^Test(Udev|FirstBoot|SecondBoot|Namespaces)")
	})
	t.Run("with it", func(t *testing.T) {
		guest := vm.Start(t, vm.Config{Udev: true})
		guest.TestWith(t, putPage(t, guest, "deploy.md"), identityTests, "-test.run=^TestUdev")
	})
}

// The same disks, in another order at the next boot.
func TestVMDisksThatChangePlaces(t *testing.T) {
	t.Parallel()
	media := t.TempDir()
	// Two namespaces of one NVMe controller, which must be there from the start.
	arguments := []string{"-device", "nvme,id=spaces,serial=SPACES"}
	for _, number := range []string{"1", "2"} {
		path := filepath.Join(media, "namespace"+number)
		rig.Must(t, os.WriteFile(path, nil, 0o600))
		rig.Must(t, os.Truncate(path, 64*rig.MiB))
		arguments = append(arguments,
			"-drive", "if=none,format=raw,id=namespace"+number+",file="+path,
			"-device", "nvme-ns,bus=spaces,nsid="+number+",drive=namespace"+number)
	}
	for _, boot := range []struct {
		name  string
		order []int
	}{{"FirstBoot", []int{0, 1}}, {"SecondBoot", []int{1, 0}}} {
		t.Run(boot.name, func(t *testing.T) {
			config := vm.Config{Udev: true, Media: media, Arguments: arguments}
			for _, bus := range []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio} {
				disks := []machine.Disk{
					{Bus: bus, Size: 64 * rig.MiB, Medium: "pool-" + string(bus), Serial: "POOL-" + strings.ToUpper(string(bus)), WWN: 0x5000c500a1b20011},
					{Bus: bus, Size: 64 * rig.MiB, Medium: "named-" + string(bus), Serial: "NAMED-" + strings.ToUpper(string(bus)), WWN: 0x5000c500a1b20012},
				}
				for _, index := range boot.order {
					config.Disks = append(config.Disks, disks[index])
				}
			}
			guest := vm.Start(t, config)
			guest.Test(t, identityTests, "-test.run=^Test("+boot.name+"|Namespaces)$")
		})
	}
}
