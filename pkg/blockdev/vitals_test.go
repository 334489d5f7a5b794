package blockdev_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What the kernel tells of hardware that this machine does not have.
func TestVitals(t *testing.T) {
	const stat = "      12 0 96 3        5 0 8 1        2 9 9   7 0 0 0   4 1\n"
	base := blockdev.Vitals{DiskSeq: 9, Size: 1 << 30, Completed: 12 + 5 + 7 + 4, InFlight: 2}
	with := func(change func(*blockdev.Vitals)) blockdev.Vitals {
		vitals := base
		change(&vitals)
		return vitals
	}
	for name, test := range map[string]struct {
		tree   tree
		number linux.DeviceNumber
		want   blockdev.Vitals
	}{
		"SCSI": {
			disk("8:0", "pci/host0/0:0:0:0/block/sda", tree{"stat": stat, "device": "-> ../..", "ro": "1\n"}).
				with("devices/pci/host0/0:0:0:0", tree{"state": "transport-offline\n", "ioerr_cnt": "0x1f\n"}),
			linux.DeviceNumber{Major: 8},
			with(func(v *blockdev.Vitals) {
				v.Name, v.ReadOnly, v.States, v.HasErrors, v.Errors = "sda", true, []string{"transport-offline"}, true, 31
			}),
		},
		"NVMe": {
			disk("259:0", "pci/nvme/nvme0/nvme0n1", tree{"stat": stat, "device": "-> .."}).with("devices/pci/nvme/nvme0", tree{"state": "live\n"}),
			linux.DeviceNumber{Major: 259},
			with(func(v *blockdev.Vitals) {
				v.Name, v.States, v.Controllers = "nvme0n1", []string{"live"}, []string{"nvme0"}
			}),
		},
		"NVMe with two controllers": {
			disk("259:0", "virtual/nvme-subsystem/nvme-subsys3/nvme3n1", tree{"stat": stat, "device": "-> .."}).
				with("devices/virtual/nvme-subsystem/nvme-subsys3", tree{"nvme0": "-> ../../../pci/nvme0", "nvme2": "-> ../../../pci/nvme2", "nvme3n1.x/state": "other\n"}).
				with("devices/pci", tree{"nvme0/state": "live\n", "nvme2/state": "connecting\n"}),
			linux.DeviceNumber{Major: 259},
			with(func(v *blockdev.Vitals) {
				v.Name, v.States, v.Controllers = "nvme3n1", []string{"live", "connecting"}, []string{"nvme0", "nvme2"}
			}),
		},
		"partition": {
			disk("8:0", "pci/block/sda", tree{}).with("devices/pci/block/sda/sda1", tree{
				"dev": "8:1\n", "partition": "1\n", "size": "2097152\n", "ro": "0\n", "stat": stat,
			}).with("dev/block", tree{"8:1": "-> ../../devices/pci/block/sda/sda1"}),
			linux.DeviceNumber{Major: 8, Minor: 1},
			with(func(v *blockdev.Vitals) {
				v.Name, v.Partition, v.Below = "sda1", true, []linux.DeviceNumber{{Major: 8}}
			}),
		},
		"multipath, one of whose disks has gone": {
			disk("253:0", "virtual/block/dm-0", tree{
				"stat": stat, "dm/suspended": "1\n", "dm/uuid": "mpath-3600\n", "slaves/sda": "-> ../../../../pci/block/sda", "slaves/sdb": "-> ../../../../pci/block/sdb",
			}).with("devices/pci/block/sda", tree{"dev": "8:0\n"}),
			linux.DeviceNumber{Major: 253},
			with(func(v *blockdev.Vitals) {
				v.Name, v.Mapped, v.Suspended, v.Redundant = "dm-0", true, true, true
				v.Below, v.Lost = []linux.DeviceNumber{{Major: 8}}, []string{"sdb"}
			}),
		},
		"array without copies, on an old kernel": {
			disk("9:0", "virtual/block/md0", tree{"stat": "12 0 96 3 5 0 8 1 2 9 9\n", "md/level": "raid0\n", "diskseq": gone}),
			linux.DeviceNumber{Major: 9},
			with(func(v *blockdev.Vitals) { v.Name, v.DiskSeq, v.Completed = "md0", 0, 17 }),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.tree.write(t).Vitals(test.number)
			rig.Must(t, err)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestVitalsThatCannotBeRead(t *testing.T) {
	for name, file := range map[string]tree{
		"stat cut short": {"stat": "1 2 3\n"},
		"stat no number": {"stat": "x 0 0 0 0 0 0 0 0 0 0\n"},
		"size":           {"size": "many\n", "stat": "0 0 0 0 0 0 0 0 0 0 0\n"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := disk("8:0", "pci/block/sda", file).write(t).Vitals(linux.DeviceNumber{Major: 8})
			if err == nil || errors.Is(err, volume.ErrNotFound) {
				t.Errorf("got %v", err)
			}
		})
	}
	_, err := disk("8:0", "pci/block/sda", nil).write(t).Vitals(linux.DeviceNumber{Major: 8, Minor: 16})
	if !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("of a device that is not there: %v", err)
	}
}

// A real loop device, and what it is on.
func TestVitalsOfALoopDevice(t *testing.T) {
	device := rig.NewLoop(t, 3*rig.MiB, 512)
	got, err := sysfs.Vitals(device.Number())
	rig.Must(t, err)
	want := &blockdev.Backing{Path: device.Backing, Size: 3 * rig.MiB, IsKnown: true}
	if diff := cmp.Diff(want, got.Backing); diff != "" || got.Size != 3*rig.MiB || got.DiskSeq == 0 {
		t.Errorf("got %+v: %s", got, diff)
	}
}
