package hotplug

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// mapped is a device that a tool of the host makes by device-mapper.
type mapped struct {
	name, path string
	// create makes it on a disk. KEY stands for a file with a key, DISK for the disk.
	create []string
	// close takes away what was made an error, open makes it again, and end takes all away.
	close, open, end string
}

var mappedDevices = []mapped{
	{
		"logical volume", "/dev/rawblock-test/data",
		[]string{"lvm vgcreate rawblock-test DISK", "lvm lvcreate --yes --size 4M --name data rawblock-test"},
		"dmsetup remove rawblock--test-data", "lvm lvchange --activate y rawblock-test/data", "lvm vgchange --activate n rawblock-test",
	},
	{
		"thin logical volume", "/dev/rawblock-test/data",
		[]string{
			"lvm vgcreate rawblock-test DISK", "lvm lvcreate --yes --type thin-pool --size 16M --name pool rawblock-test",
			"lvm lvcreate --yes --thinpool rawblock-test/pool --virtualsize 8M --name data",
		},
		"dmsetup remove rawblock--test-data", "lvm lvchange --activate y rawblock-test/data", "lvm vgchange --activate n rawblock-test",
	},
	{
		"LUKS2", "/dev/mapper/rawblock-test",
		[]string{
			"cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file KEY DISK",
			"cryptsetup open --key-file KEY DISK rawblock-test",
		},
		"cryptsetup close rawblock-test", "cryptsetup open --key-file KEY DISK rawblock-test", "cryptsetup close rawblock-test",
	},
}

// What LVM and cryptsetup have made is taken from a program that has it open, and is what
// it was when they make it again.
func TestVMRevokeOfMappedDevices(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	rig.Must(t, os.WriteFile(key, []byte("a key of the test"), 0o600))
	for _, m := range mappedDevices {
		t.Run(m.name, func(t *testing.T) {
			disk := machine.Add(t, machine.Disk{Size: 48 * rig.MiB})
			run := func(line string) {
				t.Helper()
				words := strings.Fields(strings.NewReplacer("KEY", key, "DISK", disk.Path).Replace(line))
				if output, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", line, err, output)
				}
			}
			for _, line := range m.create {
				run(line)
			}
			defer run(m.end)
			node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
			attached, err := node.Attach(rig.Context(t), container.request(&rig.Disk{Path: m.path}, "/dev/xvdb"))
			rig.Must(t, err)
			release, write := container.holdAndWrite(t, "descriptor", "/dev/xvdb")
			if got := write("first"); got != "written" {
				t.Fatalf("the holder writes: %s", got)
			}
			_, err = node.Revoke(rig.Context(t), attached.ID)
			rig.Must(t, err)
			wantNoAttachment(t, node)
			if got := write("later"); !strings.Contains(got, "input/output error") {
				t.Errorf("the holder writes: %s", got)
			}
			release()
			run(m.close)
			run(m.open)
			if got := rig.ReadAt(t, m.path, 5, 0); got != "first" {
				t.Errorf("on the device stands %q", got)
			}
		})
	}
}
