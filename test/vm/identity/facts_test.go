package identity

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// kinds are disks of all buses, and what they state. The numbers, names and sequence
// numbers are the kernel's.
var kinds = map[string]struct {
	disk machine.Disk
	want blockdev.Disk
}{
	"SCSI": {
		machine.Disk{Bus: machine.SCSI, Size: 64 * rig.MiB, Serial: "SCSI-1", WWN: 0x5000c500a1b2c3d4},
		blockdev.Disk{Transport: "scsi", Model: "QEMU HARDDISK", Serial: "SCSI-1", WWID: "naa.5000c500a1b2c3d4", LogicalBlockSize: 512, Rotational: true},
	},
	"SCSI that states nothing": {
		machine.Disk{Bus: machine.SCSI, Size: 64 * rig.MiB},
		blockdev.Disk{Transport: "scsi", Model: "QEMU HARDDISK", LogicalBlockSize: 512, Rotational: true},
	},
	"SCSI, read-only": {
		machine.Disk{Bus: machine.SCSI, Size: 64 * rig.MiB, Serial: "SCSI-2", ReadOnly: true},
		blockdev.Disk{Transport: "scsi", Model: "QEMU HARDDISK", Serial: "SCSI-2", LogicalBlockSize: 512, Rotational: true, ReadOnly: true},
	},
	"SCSI, 4Kn": {
		machine.Disk{Bus: machine.SCSI, Size: 64 * rig.MiB, Serial: "SCSI-3", LogicalBlockSize: 4096},
		blockdev.Disk{Transport: "scsi", Model: "QEMU HARDDISK", Serial: "SCSI-3", LogicalBlockSize: 4096, Rotational: true},
	},
	"NVMe": {
		machine.Disk{Bus: machine.NVMe, Size: 64 * rig.MiB, Serial: "NVME-1"},
		blockdev.Disk{Transport: "nvme", Model: "QEMU NVMe Ctrl", Serial: "NVME-1", WWID: "nvme.1b36-4e564d452d31-51454d55204e564d65204374726c-00000001", LogicalBlockSize: 512},
	},
	"NVMe, 4Kn": {
		machine.Disk{Bus: machine.NVMe, Size: 64 * rig.MiB, Serial: "NVME-2", LogicalBlockSize: 4096},
		blockdev.Disk{Transport: "nvme", Model: "QEMU NVMe Ctrl", Serial: "NVME-2", WWID: "nvme.1b36-4e564d452d32-51454d55204e564d65204374726c-00000001", LogicalBlockSize: 4096},
	},
	"virtio": {
		machine.Disk{Bus: machine.Virtio, Size: 64 * rig.MiB, Serial: "VIRTIO-1"},
		blockdev.Disk{Transport: "virtio", Serial: "VIRTIO-1", LogicalBlockSize: 512, Rotational: true},
	},
	"virtio that states nothing": {
		machine.Disk{Bus: machine.Virtio, Size: 64 * rig.MiB},
		blockdev.Disk{Transport: "virtio", LogicalBlockSize: 512, Rotational: true},
	},
}

// What sysfs tells of disks is what they state. It does not depend on udev.
func TestFacts(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { addKind(t, kind.disk, kind.want) })
	}
}

// addKind plugs a disk in and checks what is known of it.
func addKind(t *testing.T, described machine.Disk, want blockdev.Disk) blockdev.Disk {
	t.Helper()
	plugged := machine.Add(t, described)
	got := facts(t, plugged.Name)
	device, err := blockdev.Open(plugged.Path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	want.Name, want.NodePath, want.Number, want.DiskSeq, want.Size = plugged.Name, plugged.Path, device.Number(), device.DiskSeq(), device.Size()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Size != uint64(described.Size) || got.DiskSeq == 0 {
		t.Errorf("%+v", got)
	}
	return got
}

// udev and lsblk, which other programs ask, say the same of a disk; and each link
// by which udev names it leads to it, is accepted, and its pins hold.
func TestUdevSaysTheSame(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			got := addKind(t, kind.disk, kind.want)
			settle(t)
			wantLsblk(t, got)
			links := strings.Fields(run(t, "udevadm", "info", "--query=symlink", "--root", got.NodePath))
			for _, link := range links {
				if filepath.Dir(link) != "/dev/disk/by-id" {
					continue
				}
				t.Log(link)
				var pins []string
				for pin, value := range map[string]string{"wwid": got.WWID, "serial": got.Serial} {
					if value != "" {
						pins = append(pins, pin, value)
					}
				}
				device, err := openStatic(t, attributes(link, pins...))
				if err != nil {
					t.Errorf("%s: %v", link, err)
					continue
				}
				device.Close()
				if device.Number() != got.Number {
					t.Errorf("%s leads to %s, not %s", link, device.Number(), got.Number)
				}
			}
		})
	}
}

// wantLsblk compares what lsblk shows, which has it from udev, with what we know.
func wantLsblk(t *testing.T, want blockdev.Disk) {
	t.Helper()
	var shown struct {
		Blockdevices []struct {
			Name, Model, Serial, WWN, Tran string
			LogSec                         uint64 `json:"log-sec"`
			Size                           uint64
			RO, Rota                       bool
		}
	}
	text := run(t, "lsblk", "--json", "--bytes", "--nodeps", "--output=NAME,MODEL,SERIAL,WWN,TRAN,LOG-SEC,SIZE,RO,ROTA", want.NodePath)
	t.Log(text)
	rig.Must(t, json.Unmarshal([]byte(text), &shown))
	got := shown.Blockdevices[0]
	if got.Model != want.Model || got.LogSec != want.LogicalBlockSize || got.Size != want.Size || got.RO != want.ReadOnly || got.Rota != want.Rotational {
		t.Errorf("lsblk shows %+v, sysfs %+v", got, want)
	}
	if got.Serial != want.Serial {
		t.Errorf("lsblk shows the serial number %q, sysfs %q", got.Serial, want.Serial)
	}
	// udev writes the name of a SCSI disk as a number.
	if wwn := strings.Replace(want.WWID, "naa.", "0x", 1); got.WWN != wwn {
		t.Errorf("lsblk shows the WWN %q, sysfs %q", got.WWN, want.WWID)
	}
}
