package blockdev_test

import (
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Of all that a machine has, the host alone has its disks, and what lies on nothing else.
func TestHostDevices(t *testing.T) {
	files := tree{}
	node := func(number, place, name string) {
		files["dev/block/"+number] = "-> ../../devices/" + place
		files["devices/"+place+"/dev"], files["devices/"+place+"/uevent"], files["devices/"+place+"/size"] = number+"\n", "DEVNAME="+name+"\n", "8\n"
	}
	above := func(place, mapping, uuid string, below ...string) {
		for i, number := range below {
			files["devices/"+place+"/slaves/"+string(rune('a'+i))+"/dev"] = number + "\n"
		}
		if mapping != "" {
			files["devices/"+place+"/dm/name"], files["devices/"+place+"/dm/uuid"] = mapping+"\n", uuid+"\n"
		}
	}
	const scsi = "pci0/host0/target0/block/"
	node("8:0", scsi+"sda", "sda")
	node("8:1", scsi+"sda/sda1", "sda1")
	node("8:16", scsi+"sdb", "sdb") // A pool's.
	node("8:17", scsi+"sdb/sdb1", "sdb1")
	files["devices/"+scsi+"sda/sda1/partition"], files["devices/"+scsi+"sdb/sdb1/partition"] = "1\n", "1\n"
	node("7:900", "virtual/block/loop900", "loop900")
	files["block/loop900"] = "-> ../devices/virtual/block/loop900"
	node("253:0", "virtual/block/dm-0", "dm-0")
	above("virtual/block/dm-0", "vg-lv", "LVM-x", "8:0")
	node("253:1", "virtual/block/dm-1", "dm-1")
	above("virtual/block/dm-1", "root", "CRYPT-LUKS2-x-root", "8:1")
	node("253:2", "virtual/block/dm-2", "dm-2")
	above("virtual/block/dm-2", "any", "", "8:17")
	node("253:3", "virtual/block/dm-3", "dm-3")
	above("virtual/block/dm-3", "rawblock:x", "CRYPT-LUKS2-x", "8:0")
	node("253:4", "virtual/block/dm-4", "dm-4")
	above("virtual/block/dm-4", "zero", "")
	node("9:0", "virtual/block/md0", "md0")
	above("virtual/block/md0", "", "", "8:0", "253:1")
	node("9:1", "virtual/block/md1", "md1")
	above("virtual/block/md1", "", "", "8:0", "7:900")
	isPools := func(number linux.DeviceNumber) (bool, error) {
		return number == linux.DeviceNumber{Major: 8, Minor: 16}, nil
	}
	found, err := files.write(t).HostDevices(isPools)
	rig.Must(t, err)
	want := map[string]string{
		"/dev/sda": "", "/dev/sda1": "", "/dev/dm-1": "", "/dev/md0": "", "/dev/sdb": "a disk of a pool", "/dev/sdb1": "a disk of a pool", "/dev/loop900": "driver loop",
		"/dev/dm-0": "logical volume", "/dev/dm-2": "it lies on /dev/sdb1", "/dev/dm-3": "encrypted volume", "/dev/dm-4": "nothing is known", "/dev/md1": "it lies on /dev/loop900",
	}
	for _, device := range found {
		reason, known := want[device.Path]
		if !known || (reason == "") != (device.Refused == "") || !strings.Contains(device.Refused, reason) {
			t.Errorf("%s is refused with %q, want %q", device.Path, device.Refused, reason)
		}
		delete(want, device.Path)
	}
	if len(want) > 0 {
		t.Errorf("missing %v", want)
	}
}
