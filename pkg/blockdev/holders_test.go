package blockdev_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Not every kernel has device-mapper, so who holds a disk is told by a tree.
func TestExplainHolders(t *testing.T) {
	const disk, part = "devices/block/sda", "devices/block/sda/sda1"
	base := tree{
		"dev/block/8:0": "-> ../../" + disk, "dev/block/8:1": "-> ../../" + part,
		part + "/partition": "1\n",
	}
	whole, partition := linux.DeviceNumber{Major: 8}, linux.DeviceNumber{Major: 8, Minor: 1}
	for name, test := range map[string]struct {
		files  tree
		number linux.DeviceNumber
		want   string
	}{
		"LVM on the disk":           {tree{disk + "/holders/dm-0/dm/name": "vg0-root\n"}, whole, "held by dm-0 (vg0-root); remove it from there first"},
		"LVM on the partition":      {tree{part + "/holders/dm-0/dm/name": "vg0-root\n"}, whole, "held by dm-0 (vg0-root);"},
		"partition itself":          {tree{part + "/holders/dm-0/dm/name": "vg0-root\n"}, partition, "held by dm-0 (vg0-root);"},
		"disk below the partition":  {tree{disk + "/holders/md0/md/level": "raid1\n"}, partition, "held by md0;"},
		"two":                       {tree{disk + "/holders/dm-1/dm/name": "b\n", disk + "/holders/dm-0/dm/name": "a\n"}, whole, "held by dm-0 (a), dm-1 (b);"},
		"one that holds both parts": {tree{disk + "/holders/dm-0/dm/name": "a\n", part + "/holders/dm-0/dm/name": "a\n"}, whole, "held by dm-0 (a); "},
		"btrfs on the disk":         {tree{disk + "/uevent": "DEVNAME=sda\n", "fs/btrfs/0123-45/devices/sda": "-> ../../../../" + disk}, whole, "part of the btrfs filesystem 0123-45, which is mounted; unmount it first"},
		"nobody to be seen":         {tree{disk + "/holders/.keep/x": ""}, linux.DeviceNumber{Major: 9}, "claimed exclusively by the kernel or another program"},
	} {
		t.Run(name, func(t *testing.T) {
			files := maps.Clone(base)
			maps.Copy(files, test.files)
			if got := blockdev.ExplainClaim(files.write(t), test.number); !strings.HasPrefix(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
