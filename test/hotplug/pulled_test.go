package hotplug

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// numberOf returns the number of the device whose node is at a path.
func numberOf(t *testing.T, path string) linux.DeviceNumber {
	t.Helper()
	node, err := linux.OpenPath(path)
	rig.Must(t, err)
	defer node.Close()
	info, err := linux.Stat(node)
	rig.Must(t, err)
	return info.Device
}

// wantNoWay checks that the container can open a device neither by a node that it has
// nor by one that it makes itself.
func (c *container) wantNoWay(t *testing.T, path string, number linux.DeviceNumber) {
	t.Helper()
	c.wantNothing(t, path)
	own := fmt.Sprintf("/dev/own-%d-%d", number.Major, number.Minor)
	c.Run(t, "sh", "-c", fmt.Sprintf("test -e %s || mknod %s b %d %d", own, own, number.Major, number.Minor))
	_, err := c.read(t, own, 1)
	wantRefused(t, err)
}

// A disk is pulled out while a container has it open. The container goes on, with the
// other disk that it was given; the disk that comes back, under another name since the
// old one is held, is not given to it until it is asked for.
func TestVMPulledWhileOpen(t *testing.T) {
	for _, bus := range []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/plugin restarted %t", bus, restarted), func(t *testing.T) {
				disk := machine.Add(t, machine.Disk{Bus: bus, Size: 4 * rig.MiB, Serial: "pulled"})
				beside := machine.Add(t, machine.Disk{Bus: bus, Size: 4 * rig.MiB, Serial: "beside"})
				node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
				ctx, before := rig.Context(t), rules(t, container)
				was := numberOf(t, disk.Path)
				other, err := node.Attach(ctx, container.request(&rig.Disk{Path: beside.Path}, "/dev/xvdc"))
				rig.Must(t, err)
				withOther := rules(t, container)
				attached, err := node.Attach(ctx, container.request(&rig.Disk{Path: disk.Path}, "/dev/xvdb"))
				rig.Must(t, err)
				release, write := container.holdAndWrite(t, "descriptor", "/dev/xvdb")
				if got := write("first"); got != "written" {
					t.Fatalf("the holder writes: %s", got)
				}

				disk.Unplug(t)
				if got := write("later"); got == "written" {
					t.Error("the holder writes to a disk that has gone")
				} else {
					t.Logf("The holder sees: %s.", got)
				}
				if restarted {
					node.Close()
					node = node.restart(t)
				}
				rig.Must(t, node.Reconcile(ctx))
				wantLost(t, node, attached.ID)
				container.wantNoWay(t, "/dev/xvdb", was)
				wantRules(t, container, withOther)
				rig.Must(t, container.write(t, "/dev/xvdc", "beside"))

				disk.Plug(t)
				is := numberOf(t, disk.Path)
				t.Logf("The disk was %s, and is %s (%s).", was, disk.Path, is)
				rig.Must(t, node.Reconcile(ctx))
				wantLost(t, node, attached.ID)
				container.wantNoWay(t, "/dev/xvdb", was)
				container.wantNoWay(t, "/dev/xvdb", is)

				_, err = node.Detach(ctx, attached.ID)
				rig.Must(t, err)
				wantRules(t, container, withOther)
				again, err := node.Attach(ctx, container.request(&rig.Disk{Path: disk.Path}, "/dev/xvdb"))
				rig.Must(t, err)
				if got, err := container.read(t, "/dev/xvdb", 5); err != nil || got != "first" {
					t.Errorf("the disk that is back has %q, %v", got, err)
				}
				release()
				for _, id := range []string{again.ID, other.ID} {
					_, err = node.Detach(ctx, id)
					rig.Must(t, err)
				}
				wantRules(t, container, before)
			})
		}
	}
}

// wantLost checks that an attachment is lost, and another one is not.
func wantLost(t *testing.T, node *node, id string) {
	t.Helper()
	list, err := node.List(rig.Context(t))
	rig.Must(t, err)
	states := map[bool]hotplug.State{}
	for _, one := range list {
		states[one.ID == id] = one.State
	}
	if len(list) != 2 || states[true] != hotplug.Lost || states[false] != hotplug.Attached {
		t.Errorf("the attachments are %+v", list)
	}
}

// loseHold ends what holds an attached device, as it is for one that an earlier version
// attached: else no other disk gets its number.
func loseHold(t *testing.T, number linux.DeviceNumber) {
	t.Helper()
	rig.Must(t, blockdev.NewSysfs("/sys").ReleaseHolds(number, ""))
}

// Another disk comes into the place of the one that was pulled, while the plugin does
// not run: under its very number, as its hold was lost.
func TestVMAnotherDiskInThePlace(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB, Serial: "pulled"})
	node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
	ctx, was := rig.Context(t), numberOf(t, disk.Path)
	attached, err := node.Attach(ctx, container.request(&rig.Disk{Path: disk.Path}, "/dev/xvdb"))
	rig.Must(t, err)
	node.Close()
	loseHold(t, was)
	disk.Unplug(t)
	other := machine.Add(t, machine.Disk{Size: 4 * rig.MiB, Serial: "somebody-elses"})
	if is := numberOf(t, other.Path); is != was {
		t.Fatalf("the other disk is %s, not %s", is, was)
	}
	rig.Must(t, os.WriteFile(other.Path, []byte("precious"), 0))
	node = node.restart(t)
	rig.Must(t, node.Reconcile(ctx))
	container.wantNoWay(t, "/dev/xvdb", was)
	_, err = node.Attach(ctx, container.request(&rig.Disk{Path: other.Path}, "/dev/xvdb"))
	wantErrorOf(t, err, volume.ErrInUse, "Lost); detach it first")
	list, err := node.List(ctx)
	if err != nil || len(list) != 1 || list[0].State != hotplug.Lost || !strings.Contains(list[0].Reason, "the disk has gone") {
		t.Errorf("the attachments are %+v, %v", list, err)
	}
	_, err = node.Detach(ctx, attached.ID)
	rig.Must(t, err)
	wantNoAttachment(t, node)
}
