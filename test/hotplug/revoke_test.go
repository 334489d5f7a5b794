package hotplug

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// A device that is not of device-mapper cannot be taken from who has it open.
func TestRevokeOfAPlainDevice(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{})
	ctx := rig.Context(t)
	attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
	rig.Must(t, err)
	release, write := container.holdAndWrite(t, "descriptor", "/dev/xvdb")
	held, err := node.Revoke(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrPrecondition, "is no device-mapper device")
	if held.State != hotplug.Held || len(held.Holders) != 1 {
		t.Errorf("the attachment is %+v", held)
	}
	if got := write("still"); got != "written" {
		t.Errorf("the holder writes: %s", got)
	}
	release()
	_, err = node.Revoke(ctx, attached.ID)
	rig.Must(t, err)
	wantNoAttachment(t, node)
}

// mapping is a device of device-mapper over a disk of the guest machine.
type mapping struct {
	name string
	*rig.Disk
}

// newMapping makes a mapping of a disk. The mapping goes with the test.
func newMapping(t *testing.T, name, disk string) mapping {
	t.Helper()
	return newMappingOf(t, name, disk, rig.MiB)
}

// newMappingOf makes one of the beginning of a disk, of a size in bytes.
func newMappingOf(t *testing.T, name, disk string, size int) mapping {
	t.Helper()
	dmsetup(t, "create", name, "--table", fmt.Sprintf("0 %d linear %s 0", size/512, disk))
	path := "/dev/mapper/" + name
	t.Cleanup(func() {
		loseHold(t, numberOf(t, path)) // Of what the test has left attached.
		dmsetup(t, "remove", "--retry", name)
	})
	return mapping{name, &rig.Disk{Path: path}}
}

func dmsetup(t *testing.T, args ...string) string {
	t.Helper()
	output, err := exec.Command("dmsetup", args...).CombinedOutput()
	if err != nil {
		t.Errorf("dmsetup %s: %v\n%s", args[0], err, output)
	}
	return string(output)
}

// table is the mapping's table.
func (m mapping) table(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(dmsetup(t, "table", m.name))
}

// A program that has the device open loses it, and nobody else does: the medium is as
// it was, and so is the disk's other use.
func TestVMRevoke(t *testing.T) {
	for _, bus := range []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio} {
		t.Run(string(bus), func(t *testing.T) {
			disk := machine.Add(t, machine.Disk{Bus: bus, Size: 4 * rig.MiB})
			device, beside := newMapping(t, "rawblock-test", disk.Path), newMapping(t, "rawblock-test-beside", disk.Path)
			node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
			ctx := rig.Context(t)
			attached, err := node.Attach(ctx, container.request(device.Disk, "/dev/xvdb"))
			rig.Must(t, err)
			release, write := container.holdAndWrite(t, "descriptor", "/dev/xvdb")
			if got := write("first"); got != "written" {
				t.Fatalf("the holder writes: %s", got)
			}
			_, err = node.Detach(ctx, attached.ID)
			wantErrorOf(t, err, volume.ErrInUse, "(holder)")

			got, err := node.Revoke(ctx, attached.ID)
			rig.Must(t, err)
			if got.State != hotplug.Detached {
				t.Errorf("the attachment is %+v", got)
			}
			wantNoAttachment(t, node)
			if got := write("later"); !strings.Contains(got, "input/output error") {
				t.Errorf("the holder writes: %s", got)
			}
			if got := rig.ReadAt(t, disk.Path, 5, 0); got != "first" {
				t.Errorf("on the disk stands %q", got)
			}
			if got := beside.table(t); !strings.Contains(got, "linear") {
				t.Errorf("the mapping beside is %s", got)
			}
			// It is not given to the next one, who would share it with the old one.
			_, err = node.Attach(ctx, container.request(device.Disk, "/dev/xvdb"))
			wantErrorOf(t, err, volume.ErrPrecondition, "has an error target")
			release()
		})
	}
}

// Where nobody has the device open, its table stays as it is.
func TestVMRevokeOfWhatNobodyHolds(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	device := newMapping(t, "rawblock-test", disk.Path)
	node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
	ctx, before := rig.Context(t), device.table(t)
	attached, err := node.Attach(ctx, container.request(device.Disk, "/dev/xvdb"))
	rig.Must(t, err)
	_, err = node.Revoke(ctx, attached.ID)
	rig.Must(t, err)
	if after := device.table(t); after != before {
		t.Errorf("the table is %s, and was %s", after, before)
	}
}

// What others have too is not taken from them.
func TestVMRevokeThatWouldHitOthers(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	device := newMapping(t, "rawblock-test", disk.Path)
	node, ctx := newNode(t), rig.Context(t)
	one, two := startContainer(t, oci.Config{CgroupV2: true}), startContainer(t, oci.Config{CgroupV2: true})
	request, other := one.request(device.Disk, "/dev/xvdb"), two.request(device.Disk, "/dev/xvdb")
	request.Shared, other.Shared = true, true
	attached, err := node.Attach(ctx, request)
	rig.Must(t, err)
	_, err = node.Attach(ctx, other)
	rig.Must(t, err)
	release, write := one.holdAndWrite(t, "descriptor", "/dev/xvdb")
	held, err := node.Revoke(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrPrecondition, "is attached to")
	if got := write("still"); held.State != hotplug.Held || got != "written" {
		t.Errorf("the attachment is %+v, and its holder writes: %s", held, got)
	}
	release()
}

// A disk that answers nothing keeps I/O under way: nothing is changed then.
func TestVMRevokeOfAHungDisk(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	device := newMapping(t, "rawblock-test", disk.Path)
	node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
	ctx, before := rig.Context(t), device.table(t)
	attached, err := node.Attach(ctx, container.request(device.Disk, "/dev/xvdb"))
	rig.Must(t, err)
	release, write := container.holdAndWrite(t, "descriptor", "/dev/xvdb")
	disk.Hang(t)
	written := make(chan string, 1)
	go func() {
		// The first is let through by the machine.
		write("one")
		written <- write("two")
	}()
	waitForIO(t, disk)
	_, err = node.Revoke(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrAborted, "is under way and does not end")
	if after := device.table(t); after != before {
		t.Errorf("the table is %s, and was %s", after, before)
	}
	disk.Mend(t)
	if got := <-written; got != "written" {
		t.Errorf("once the disk answers again, the holder writes: %s", got)
	}
	_, err = node.Revoke(ctx, attached.ID)
	rig.Must(t, err)
	if got := write("three"); !strings.Contains(got, "input/output error") {
		t.Errorf("the holder writes: %s", got)
	}
	release()
}

// waitForIO waits until I/O of a disk is under way and stays so.
func waitForIO(t *testing.T, disk *machine.Plugged) {
	t.Helper()
	for seen := 0; seen < 200; time.Sleep(time.Millisecond) {
		inflight := rig.ReadAt(t, "/sys/block/"+disk.Name+"/inflight", 16, 0)
		if seen++; strings.Join(strings.Fields(inflight), " ") == "0 0" {
			seen = 0
		}
	}
}
