package blockdev_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The trees of disks that this machine need not have, with the fields as the
// kernel pads them.
var (
	nvme = tree{
		"dev/block/259:0":                 "-> ../../devices/pci0/nvme/nvme0/nvme0n1",
		"devices/pci0/nvme/nvme0/serial":  "S6XNNS0T  \n",
		"devices/pci0/nvme/nvme0/nvme0n1": "",
	}.with("devices/pci0/nvme/nvme0/nvme0n1", tree{
		"device": "-> ..",
		"wwid":   "eui.0025384331408197\n",
		"uevent": "MAJOR=259\nMINOR=0\nDEVNAME=nvme0n1\nDEVTYPE=disk\n",
	})
	nvmePartition = nvme.with("devices/pci0/nvme/nvme0/nvme0n1/nvme0n1p1", tree{
		"partition": "1\n",
		"uevent":    "MAJOR=259\nMINOR=1\nDEVNAME=nvme0n1p1\nDEVTYPE=partition\nPARTN=1\n",
	}).with("dev/block", tree{"259:1": "-> ../../devices/pci0/nvme/nvme0/nvme0n1/nvme0n1p1"})
	scsi = tree{"dev/block/8:0": "-> ../../devices/host0/0:0:0:0/block/sda"}.with("devices/host0/0:0:0:0", tree{
		"block/sda/device": "-> ../..",
		"block/sda/uevent": "MAJOR=8\nMINOR=0\nDEVNAME=sda\nDEVTYPE=disk\n",
		"wwid":             "naa.5000c500a1b2c3d4\n",
		"vpd_pg80":         "\x00\x80\x00\x0cZA1234      ",
	})
	virtio = tree{"dev/block/252:0": "-> ../../devices/virtio0/block/vda"}.with("devices/virtio0", tree{
		"block/vda/device": "-> ../..",
		"block/vda/serial": "mydevice1",
		"block/vda/uevent": "MAJOR=252\nMINOR=0\nDEVNAME=vda\n",
	})
	bare = tree{"dev/block/7:0": "-> ../../devices/virtual/block/loop0", "devices/virtual/block/loop0/uevent": "DEVNAME=loop0\n"}
)

// with returns the tree with more files below a directory.
func (files tree) with(dir string, more tree) tree {
	all := tree{}
	for path, content := range files {
		if path != dir {
			all[path] = content
		}
	}
	for path, content := range more {
		all[dir+"/"+path] = content
	}
	return all
}

func TestFacts(t *testing.T) {
	const none = ""
	for name, test := range map[string]struct {
		tree               tree
		number             linux.DeviceNumber
		wwid, serial, node string
	}{
		"NVMe":           {nvme, linux.DeviceNumber{Major: 259}, "eui.0025384331408197", "S6XNNS0T", "/dev/nvme0n1"},
		"NVMe partition": {nvmePartition, linux.DeviceNumber{Major: 259, Minor: 1}, "eui.0025384331408197", "S6XNNS0T", "/dev/nvme0n1p1"},
		"SCSI":           {scsi, linux.DeviceNumber{Major: 8}, "naa.5000c500a1b2c3d4", "ZA1234", "/dev/sda"},
		"virtio":         {virtio, linux.DeviceNumber{Major: 252}, none, "mydevice1", "/dev/vda"},
		"loop":           {bare, linux.DeviceNumber{Major: 7}, none, none, "/dev/loop0"},
		"empty serial": {
			virtio.with("devices/virtio0", tree{"block/vda/serial": "\n"}),
			linux.DeviceNumber{Major: 252},
			none, none, "/dev/vda",
		},
		"blank serial page": {
			scsi.with("devices/host0/0:0:0:0", tree{"vpd_pg80": "\x00\x80\x00\x04    "}),
			linux.DeviceNumber{Major: 8},
			"naa.5000c500a1b2c3d4", none, "/dev/sda",
		},
		"node in a directory": {
			bare.with("devices/virtual/block/loop0", tree{"uevent": "DEVNAME=mapper/x\n"}),
			linux.DeviceNumber{Major: 7},
			none, none, "/dev/mapper/x",
		},
	} {
		t.Run(name, func(t *testing.T) {
			sysfs := test.tree.write(t)
			wwid, err := sysfs.WWID(test.number)
			wantFact(t, "WWID", wwid, err, test.wwid)
			serial, err := sysfs.Serial(test.number)
			wantFact(t, "serial", serial, err, test.serial)
			if node, err := sysfs.NodePath(test.number); err != nil || node != test.node {
				t.Errorf("node %q (%v), want %q", node, err, test.node)
			}
			if err := sysfs.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

func wantFact(t *testing.T, name, got string, err error, want string) {
	t.Helper()
	if want == "" && !errors.Is(err, blockdev.ErrNoFact) {
		t.Errorf("%s: %q, %v; want %v", name, got, err, blockdev.ErrNoFact)
	}
	if want != "" && err != nil || got != want {
		t.Errorf("%s: %q, %v; want %q", name, got, err, want)
	}
}

// A fact that is there and cannot be read is an error, and not a missing fact.
func TestUnreadableFacts(t *testing.T) {
	const dir = "devices/host0/0:0:0:0/"
	isDir := func(path string) tree { // Reading a directory fails also for root.
		files := scsi.with(dir+path, tree{"x": ""})
		delete(files, dir+path)
		return files
	}
	sda := linux.DeviceNumber{Major: 8}
	for name, test := range map[string]struct {
		tree tree
		read func(blockdev.Sysfs) (string, error)
	}{
		"wwid":          {isDir("wwid"), func(s blockdev.Sysfs) (string, error) { return s.WWID(sda) }},
		"serial":        {isDir("serial"), func(s blockdev.Sysfs) (string, error) { return s.Serial(sda) }},
		"serial page":   {isDir("vpd_pg80"), func(s blockdev.Sysfs) (string, error) { return s.Serial(sda) }},
		"uevent":        {isDir("block/sda/uevent"), func(s blockdev.Sysfs) (string, error) { return s.NodePath(sda) }},
		"no DEVNAME":    {scsi.with(dir+"block/sda", tree{"uevent": "MAJOR=8\n"}), func(s blockdev.Sysfs) (string, error) { return s.NodePath(sda) }},
		"DEVNAME leads": {scsi.with(dir+"block/sda", tree{"uevent": "DEVNAME=../etc/passwd\n"}), func(s blockdev.Sysfs) (string, error) { return s.NodePath(sda) }},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.read(test.tree.write(t))
			if err == nil || errors.Is(err, blockdev.ErrNoFact) || errors.Is(err, volume.ErrNotFound) {
				t.Errorf("got %q, %v; want an error of its own", got, err)
			}
		})
	}
}

func TestFactsOfADeviceThatHasGone(t *testing.T) {
	sysfs, gone := nvme.write(t), linux.DeviceNumber{Major: 259, Minor: 7}
	_, wwidErr := sysfs.WWID(gone)
	_, serialErr := sysfs.Serial(gone)
	_, nodeErr := sysfs.NodePath(gone)
	for _, err := range []error{wwidErr, serialErr, nodeErr} {
		if !errors.Is(err, volume.ErrNotFound) || !strings.Contains(err.Error(), "259:7") {
			t.Errorf("got %v; want %v and the number", err, volume.ErrNotFound)
		}
	}
}

func TestCheckOfAnEmptyTree(t *testing.T) {
	if err := blockdev.NewSysfs(t.TempDir()).Check(); err == nil {
		t.Error("a tree without dev/block passes")
	}
}
