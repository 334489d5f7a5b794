package blockdev_test

import (
	"fmt"
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
		"LVM on the disk":           {tree{disk + "/holders/dm-0/dm/name": "vg0-root\n", disk + "/holders/dm-0/dm/uuid": "LVM-abc\n"}, whole, "held by dm-0 (LVM: vg0-root); if nobody needs it: dmsetup remove vg0-root; if the host made it of what a pod wrote into a volume, keep it from that: docs/guides/autoactivation.md"},
		"mapping on the partition":  {tree{part + "/holders/dm-0/dm/name": "name\n"}, whole, "held by dm-0 (name); if nobody needs it: dmsetup remove name;"},
		"partition itself":          {tree{part + "/holders/dm-0/dm/name": "a\n", part + "/holders/dm-0/dm/uuid": "CRYPT-LUKS2-abc-a\n"}, partition, "held by dm-0 (dm-crypt: a);"},
		"path of multipath":         {tree{disk + "/holders/dm-0/dm/name": "mpatha\n", disk + "/holders/dm-0/dm/uuid": "mpath-36001\n"}, whole, "held by dm-0 (multipath: mpatha); if nobody needs it: multipath -f mpatha;"},
		"disk below the partition":  {tree{disk + "/holders/md0/md/level": "raid1\n"}, partition, "held by md0 (MD); if nobody needs it: mdadm --stop /dev/md0;"},
		"something else":            {tree{disk + "/holders/bcache0/bcache/x": ""}, whole, "held by bcache0; remove the device from there;"},
		"two":                       {tree{disk + "/holders/dm-1/dm/name": "b\n", disk + "/holders/dm-0/dm/name": "a\n"}, whole, "held by dm-0 (a), dm-1 (b); if nobody needs it: dmsetup remove a && dmsetup remove b;"},
		"one that holds both parts": {tree{disk + "/holders/dm-0/dm/name": "a\n", part + "/holders/dm-0/dm/name": "a\n"}, whole, "held by dm-0 (a); "},
		// What lies on another is ended before that.
		"two upon each other": {tree{disk + "/holders/dm-0/dm/name": "a\n", disk + "/holders/dm-0/holders/dm-1/dm/name": "b\n"}, whole, "held by dm-1 (b), dm-0 (a); if nobody needs it: dmsetup remove b && dmsetup remove a;"},
		// Who writes a volume group decides how many there are.
		"many":              {many(disk, 100), whole, "held by dm-100 (v100), dm-101 (v101), dm-102 (v102), dm-103 (v103), dm-104 (v104), dm-105 (v105), dm-106 (v106), dm-107 (v107), 92 more (see lsblk); if nobody needs it: dmsetup remove v100 && "},
		"btrfs on the disk": {tree{disk + "/uevent": "DEVNAME=sda\n", "fs/btrfs/0123-45/devices/sda": "-> ../../../../" + disk}, whole, "part of the btrfs filesystem 0123-45, which is mounted; unmount it first"},
		"nobody to be seen": {tree{disk + "/holders/.keep/x": ""}, linux.DeviceNumber{Major: 9}, "claimed exclusively by the kernel or another program"},
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

// many are n mappings of a disk.
func many(disk string, n int) tree {
	files := tree{}
	for i := range n {
		files[fmt.Sprintf("%s/holders/dm-%d/dm/name", disk, 100+i)] = fmt.Sprintf("v%d\n", 100+i)
	}
	return files
}
