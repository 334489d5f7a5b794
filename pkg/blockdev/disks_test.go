package blockdev_test

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// disk returns a tree with one disk in the directory below /sys/devices, with what the
// block layer has of each; more replaces or adds files of that directory, and an
// empty content that begins with "- " takes one away.
func disk(number, dir string, more tree) tree {
	name := dir[strings.LastIndex(dir, "/")+1:]
	files := tree{
		"dev":                      number + "\n",
		"diskseq":                  "9\n",
		"size":                     "2097152\n",
		"ro":                       "0\n",
		"removable":                "0\n",
		"queue/logical_block_size": "512\n",
		"queue/rotational":         "0\n",
		"uevent":                   "DEVNAME=" + name + "\nDEVTYPE=disk\n",
	}
	maps.Copy(files, more)
	maps.DeleteFunc(files, func(_, content string) bool { return content == gone })
	return tree{
		"block/" + name:       "-> ../devices/" + dir,
		"dev/block/" + number: "-> ../../devices/" + dir,
	}.with("devices/"+dir, files)
}

// gone takes a file away that disk has.
const gone = "gone"

// Facts of hardware that this machine does not have, as the kernel states them.
func TestDisks(t *testing.T) {
	const host = "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0"
	base := blockdev.Disk{DiskSeq: 9, Size: 1 << 30, LogicalBlockSize: 512}
	with := func(change func(*blockdev.Disk)) blockdev.Disk {
		disk := base
		change(&disk)
		return disk
	}
	for name, test := range map[string]struct {
		tree tree
		want blockdev.Disk
	}{
		"SATA": {
			disk("8:0", host+"/block/sda", tree{
				"device": "-> ../..", "queue/rotational": "1\n", "removable": "1\n", "ro": "1\n",
				"sda1/partition": "1\n", "sda1/holders/md0/x": "", "sda2/partition": "2\n", "sda2/holders/dm-0/x": "", "holders/dm-0/x": "",
			}).with("devices/"+host, tree{"model": "ST4000NM0035    \n", "vpd_pg80": "\x00\x80\x00\x08  ZC1234", "wwid": "naa.5000c5001\n"}),
			with(func(d *blockdev.Disk) {
				d.Number, d.Name, d.NodePath, d.Transport = linux.DeviceNumber{Major: 8}, "sda", "/dev/sda", "sata"
				d.Model, d.Serial, d.WWID = "ST4000NM0035", "ZC1234", "naa.5000c5001"
				d.Rotational, d.Removable, d.ReadOnly, d.HasPartitions, d.Holders = true, true, true, true, []string{"dm-0", "md0"}
			}),
		},
		"NVMe with blocks of 4 KiB": {
			disk("259:0", "pci0/nvme/nvme0/nvme0n1", tree{"device": "-> ..", "wwid": "eui.0025\n", "queue/logical_block_size": "4096\n"}).
				with("devices/pci0/nvme/nvme0", tree{"model": "SAMSUNG MZ7   \n", "serial": "S4A  \n"}),
			with(func(d *blockdev.Disk) {
				d.Number, d.Name, d.NodePath, d.Transport = linux.DeviceNumber{Major: 259}, "nvme0n1", "/dev/nvme0n1", "nvme"
				d.Model, d.Serial, d.WWID, d.LogicalBlockSize = "SAMSUNG MZ7", "S4A", "eui.0025", 4096
			}),
		},
		"card without a medium on an old kernel": {
			disk("179:0", "platform/mmc_host/mmc0/mmc0:0001/block/mmcblk0", tree{"device": "-> ../..", "size": "0\n", "diskseq": gone}).
				with("devices/platform/mmc_host/mmc0/mmc0:0001", tree{"name": "SD32G\n", "serial": "0x123\n"}),
			with(func(d *blockdev.Disk) {
				d.Number, d.Name, d.NodePath, d.Transport = linux.DeviceNumber{Major: 179}, "mmcblk0", "/dev/mmcblk0", "mmc"
				d.Model, d.Serial, d.Size, d.DiskSeq = "SD32G", "0x123", 0, 0
			}),
		},
		"one that states nothing": {
			disk("7:0", "virtual/block/loop0", nil),
			with(func(d *blockdev.Disk) {
				d.Number, d.Name, d.NodePath, d.Transport = linux.DeviceNumber{Major: 7}, "loop0", "/dev/loop0", "loop"
			}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.tree.write(t).Disks()
			rig.Must(t, err)
			if diff := cmp.Diff([]blockdev.Disk{test.want}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The directories as kernels name them, of drivers and buses that this machine need not have.
func TestTransport(t *testing.T) {
	const scsi = "/host2/target2:0:0/2:0:0:0/block/sda"
	for dir, want := range map[string]string{
		"pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1":                                                       "nvme",
		"virtual/nvme-subsystem/nvme-subsys0/nvme0n1":                                                                   "nvme",
		"virtual/nvme-fabrics/ctl/nvme3/nvme3n1":                                                                        "nvme",
		"pci0000:00/0000:00:17.0/ata3" + scsi:                                                                           "sata",
		"pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0" + scsi:                                                               "usb",
		"pci0000:00/0000:05:00.0/host2/port-2:1/end_device-2:1/target2:0:0/2:0:0:0/block/sdb":                           "sas",
		"pci0000:00/0000:05:00.0/host2/port-2:0/expander-2:0/port-2:0:3/end_device-2:0:3/target2:0:3/2:0:3:0/block/sdc": "sas",
		"pci0000:00/0000:05:00.0/host2/rport-2:0-1/target2:0:0/2:0:0:0/block/sdd":                                       "fc",
		"platform/host2/session1/target2:0:0/2:0:0:0/block/sde":                                                         "iscsi",
		"pci0000:00/0000:00:05.0/virtio2" + scsi:                                                                        "scsi",
		"pci0000:00/0000:00:02.0/virtio1/block/vda":                                                                     "virtio",
		"vbd-51712/block/xvda":                                                                                          "xen",
		"platform/soc/mmc_host/mmc1/mmc1:aaaa/block/mmcblk1":                                                            "mmc",
		"pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/mmc_host/mmc1/mmc1:aaaa/block/mmcblk1":                                "mmc",
		"pci0000:00/0000:00:17.0/ata4/host3/target3:0:0/3:0:0:0/block/sr0":                                              "sr",
		"platform/floppy.0/block/fd0":                                                                                   "fd",
		"virtual/block/loop12":                                                                                          "loop",
		"virtual/block/ram0":                                                                                            "ram",
		"virtual/block/zram1":                                                                                           "zram",
		"virtual/block/dm-3":                                                                                            "dm",
		"virtual/block/md127":                                                                                           "md",
		"virtual/block/nbd15":                                                                                           "nbd",
		"virtual/block/drbd1000":                                                                                        "drbd",
		"rbd/0/block/rbd0":                                                                                              "rbd",
		"css0/0.0.0001/0.0.0150/block/dasda":                                                                            "dasda",
	} {
		got, err := disk("8:0", dir, nil).write(t).Disks()
		if err != nil || len(got) != 1 || got[0].Err != nil || got[0].Transport != want {
			t.Errorf("%s: %+v (%v), want %s", dir, got, err, want)
		}
	}
}

func TestTransportsAreAllKnown(t *testing.T) {
	got := slices.Sorted(slices.Values(blockdev.Transports()))
	want := []string{"fc", "iscsi", "mmc", "nvme", "sas", "sata", "scsi", "usb", "virtio", "xen"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A disk of which a fact cannot be read is there with the error, and the others
// are as they are.
func TestDisksThatCannotBeRead(t *testing.T) {
	const host = "pci0/host0/target0:0:0/0:0:0:0"
	for name, test := range map[string]struct {
		file, content string
		says          string
	}{
		"no number":            {"dev", gone, "dev"},
		"malformed number":     {"dev", "x\n", `"x"`},
		"no size":              {"size", gone, "size"},
		"malformed size":       {"size", "-1\n", "-1"},
		"no node":              {"uevent", "DEVTYPE=disk\n", "DEVNAME"},
		"no block size":        {"queue/logical_block_size", gone, "logical_block_size"},
		"read-only unknown":    {"ro", gone, "ro"},
		"rotational unknown":   {"queue/rotational", "\n", "rotational"},
		"malformed sequence":   {"diskseq", "first\n", "diskseq"},
		"unreadable serial":    {"serial/x", "", "a fact"},
		"unreadable WWID":      {"wwid/x", "", "a fact"},
		"unreadable model":     {"device/model/x", "", "a fact"},
		"holders no directory": {"holders", "", "holders"},
	} {
		t.Run(name, func(t *testing.T) {
			files := disk("8:0", host+"/block/sda", tree{test.file: test.content})
			maps.Copy(files, disk("8:16", "pci0/host0/target0:0:1/0:0:1:0/block/sdb", nil))
			got, err := files.write(t).Disks()
			rig.Must(t, err)
			if len(got) != 2 || got[0].Name != "sda" || got[0].Err == nil || !strings.Contains(got[0].Err.Error(), test.says) || !strings.Contains(got[0].Err.Error(), "sda") {
				t.Errorf("got %+v; want an error of sda that says %q", got, test.says)
			}
			if len(got) == 2 && (got[1].Name != "sdb" || got[1].Err != nil) {
				t.Errorf("the other one: %+v", got[1])
			}
		})
	}
}

// The paths to a disk with several, which the kernel has no numbers for.
func TestHiddenPathsAreNoDisks(t *testing.T) {
	files := disk("259:0", "virtual/nvme-subsystem/nvme-subsys0/nvme0n1", nil)
	maps.Copy(files, disk("259:9", "pci0/nvme/nvme0/nvme0c0n1", tree{"hidden": "1\n", "dev": gone}))
	got, err := files.write(t).Disks()
	if err != nil || len(got) != 1 || got[0].Name != "nvme0n1" {
		t.Errorf("got %+v (%v)", got, err)
	}
}

func TestDisksOfNoTree(t *testing.T) {
	if got, err := blockdev.NewSysfs(t.TempDir()).Disks(); err == nil {
		t.Errorf("got %v", got)
	}
	// The link of a disk that goes right now leads nowhere.
	got, err := tree{"block/sda": "-> ../devices/gone"}.write(t).Disks()
	if err != nil || len(got) != 0 {
		t.Errorf("got %+v (%v)", got, err)
	}
}

// What sysfs tells of the disks of this machine is what the devices themselves
// tell. Those with an identity are in test/vm/identity.
func TestDisksOfThisMachine(t *testing.T) {
	loop := rig.NewLoop(t, 3*rig.MiB, 4096)
	disks, err := sysfs.Disks()
	rig.Must(t, err)
	index := slices.IndexFunc(disks, func(d blockdev.Disk) bool { return d.Number == loop.Number() })
	if index < 0 {
		t.Fatalf("%s is not among the disks", loop.Path)
	}
	got, device := disks[index], open(t, loop.Path)
	// What else the kernel says of loop devices depends on the machine.
	want := blockdev.Disk{
		Number: device.Number(), Name: strings.TrimPrefix(loop.Path, "/dev/"), NodePath: loop.Path, DiskSeq: device.DiskSeq(), Size: device.Size(),
		LogicalBlockSize: 4096, Rotational: got.Rotational, Transport: "loop",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDisksSeesChanges(t *testing.T) {
	seen := rig.NewDisk(t, 16*rig.MiB)
	find := func() blockdev.Disk {
		disks, err := sysfs.Disks()
		rig.Must(t, err)
		for _, disk := range disks {
			if disk.Number == seen.Number() {
				return disk
			}
		}
		t.Fatalf("%s is not among the disks", seen.Path)
		return blockdev.Disk{}
	}
	before := find()
	if before.HasPartitions || before.ReadOnly {
		t.Errorf("new: %+v", before)
	}
	seen.AddPartition(t, 1)
	file, err := os.Open(seen.Path)
	rig.Must(t, err)
	defer file.Close()
	rig.Must(t, unix.IoctlSetPointerInt(int(file.Fd()), unix.BLKROSET, 1))
	if after := find(); !after.HasPartitions || !after.ReadOnly {
		t.Errorf("with a partition, read-only: %+v", after)
	}
	rig.Must(t, unix.IoctlSetPointerInt(int(file.Fd()), unix.BLKROSET, 0))
}

func TestModel(t *testing.T) {
	files := scsi.with("devices/host0/0:0:0:0", tree{"model": "VIRTUAL-DISK    \n"})
	if got, err := files.write(t).Model(linux.DeviceNumber{Major: 8}); err != nil || got != "VIRTUAL-DISK" {
		t.Errorf("got %q (%v)", got, err)
	}
	if got, err := bare.write(t).Model(linux.DeviceNumber{Major: 7}); !errors.Is(err, blockdev.ErrNoFact) {
		t.Errorf("got %q (%v), want %v", got, err, blockdev.ErrNoFact)
	}
}
