package identity

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// Between the two boots of TestVMDisksThatChangePlaces the host changes the order of
// the disks: of each bus one is a pool's, and one is named by an administrator.
var swapped = map[machine.Bus]struct {
	// pooled and named are the serial numbers, pins and link those of the named one.
	pooled, named string
	pins          []string
	link          string
}{
	machine.SCSI: {
		"POOL-SCSI", "NAMED-SCSI",
		[]string{"wwid", "naa.5000c500a1b20012", "serial", "NAMED-SCSI"},
		"wwn-0x5000c500a1b20012",
	},
	machine.NVMe: {
		"POOL-NVME", "NAMED-NVME",
		[]string{"wwid", "nvme.1b36-4e414d45442d4e564d45-51454d55204e564d65204374726c-00000001"},
		"nvme-QEMU_NVMe_Ctrl_NAMED-NVME_1",
	},
	machine.Virtio: {
		"POOL-VIRTIO", "NAMED-VIRTIO",
		[]string{"serial", "NAMED-VIRTIO"},
		"virtio-NAMED-VIRTIO",
	},
}

// nameOf returns the kernel's name of the disk with a serial number.
func nameOf(t *testing.T, serial string) string {
	t.Helper()
	disks, err := sysfs.Disks()
	rig.Must(t, err)
	for _, d := range disks {
		if d.Serial == serial {
			return d.Name
		}
	}
	t.Fatalf("none of the disks has the serial number %s: %+v", serial, disks)
	return ""
}

// byNames is a selector by the kernel's names, of which only one is that of a disk of
// the pool.
func byNames(names ...string) disk.Selector {
	var match disk.Selector
	for _, name := range names {
		match.Paths = append(match.Paths, "/dev/"+name)
	}
	return match
}

// What the second boot finds is made: a volume of the pool with data, and data on the
// disk that is named. Only the kernel's names are noted, on the disks.
func TestFirstBoot(t *testing.T) {
	for bus, d := range swapped {
		t.Run(string(bus), func(t *testing.T) {
			settle(t)
			pooled, named := nameOf(t, d.pooled), nameOf(t, d.named)
			rig.WriteAt(t, "/dev/"+named, "named, and was "+named, 0)
			pool := openPool(t, byNames(pooled, named))
			create(t, pool, "a", 8*rig.MiB)
			rig.WriteAt(t, activate(t, pool, "a").Node().Name(), "of the pool, and was "+pooled, 4096)
			wantRefused(t, pool, named, "occupied", "unknown data at 0")
			wantOpened(t, attributes("/dev/"+named, d.pins...), &machine.Plugged{Name: named})
		})
	}
}

// Each disk has the other's name now. The volume of the pool is found by what is on
// its disk; what is named by a link is found by the link, and by the kernel's name it
// is refused, since the pins do not hold.
func TestSecondBoot(t *testing.T) {
	for bus, d := range swapped {
		t.Run(string(bus), func(t *testing.T) {
			if bus == machine.SCSI {
				exchangeNames(t, d.pooled, d.named)
			}
			settle(t)
			pooled, named := nameOf(t, d.pooled), nameOf(t, d.named)
			pool := openPool(t, byNames(pooled, named))
			if got := rig.ReadAt(t, "/dev/"+named, 15+len(named), 0); got != "named, and was "+pooled {
				t.Fatalf("the disks have not changed places: on %s there is %q", named, got)
			}
			if got := rig.ReadAt(t, activate(t, pool, "a").Node().Name(), 21+len(named), 4096); got != "of the pool, and was "+named {
				t.Errorf("on the volume there is %q", got)
			}
			wantRefused(t, pool, named, "occupied", "unknown data at 0")
			wantRefusedPins(t, attributes("/dev/"+pooled, d.pins...), "is it the right disk?")
			wantOpened(t, attributes("/dev/disk/by-id/"+d.link, d.pins...), &machine.Plugged{Name: named})
			if got := rig.ReadAt(t, "/dev/disk/by-id/"+d.link, 14, 0); got != "named, and was" {
				t.Errorf("the link leads to %q", got)
			}
		})
	}
}

// exchangeNames gives each of two SCSI disks the name that the other had before the boot,
// unless it has it already: disks that are found together are probed at once, and named in
// the order in which that ends.
func exchangeNames(t *testing.T, first, second string) {
	t.Helper()
	a, b := nameOf(t, first), nameOf(t, second)
	if rig.ReadAt(t, "/dev/"+b, 15+len(b), 0) == "named, and was "+a {
		return
	}
	devices := map[string]string{}
	for _, name := range []string{a, b} {
		device, err := filepath.EvalSymlinks("/sys/block/" + name + "/device")
		rig.Must(t, err)
		devices[name] = filepath.Base(device)
		rig.Must(t, os.WriteFile(device+"/delete", []byte("1"), 0))
	}
	for _, name := range []string{max(a, b), min(a, b)} {
		var host, channel, target, unit int
		_, err := fmt.Sscanf(devices[name], "%d:%d:%d:%d", &host, &channel, &target, &unit)
		rig.Must(t, err)
		rig.Must(t, os.WriteFile(fmt.Sprintf("/sys/class/scsi_host/host%d/scan", host), fmt.Appendf(nil, "%d %d %d", channel, target, unit), 0))
		rig.Eventually(t, func() error {
			_, err := os.Stat("/sys/bus/scsi/devices/" + devices[name] + "/block")
			return err
		})
	}
}

// The namespaces of one NVMe controller state one serial number: it does not tell
// them apart, and the link by model and serial number leads to either of them. Their
// WWIDs do.
func TestNamespaces(t *testing.T) {
	settle(t)
	disks, err := sysfs.Disks()
	rig.Must(t, err)
	const byModel = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_SPACES"
	link := attributes(byModel, "serial", "SPACES")
	found := 0
	for _, d := range disks {
		if d.Serial != "SPACES" {
			continue
		}
		found++
		wantRefusedPins(t, attributes(d.NodePath, "serial", "SPACES"), "is stated by "+d.NodePath)
		wantOpened(t, attributes(d.NodePath, "serial", "SPACES", "wwid", d.WWID), &machine.Plugged{Name: d.Name})
		number := d.Name[len(d.Name)-1:]
		wantOpened(t, attributes(byModel+"_"+number, "wwid", d.WWID), &machine.Plugged{Name: d.Name})
		wantOpened(t, attributes("/dev/disk/by-id/nvme-"+d.WWID, "wwid", d.WWID), &machine.Plugged{Name: d.Name})
	}
	if found != 2 {
		t.Fatalf("%d namespaces with the serial number: %+v", found, disks)
	}
	leads, err := filepath.EvalSymlinks(byModel)
	rig.Must(t, err)
	t.Logf("%s leads to %s", byModel, leads)
	wantRefusedPins(t, link, "is stated by")
}
