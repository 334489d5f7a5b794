package hotplug

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// eachVersion runs a test with a container of either version of cgroups.
func eachVersion(t *testing.T, test func(t *testing.T, node *node, container *container)) {
	for _, v2 := range []bool{false, true} {
		t.Run(version(v2), func(t *testing.T) {
			test(t, newNode(t), startContainer(t, oci.Config{CgroupV2: v2}))
		})
	}
}

// takeGrant takes what was granted, as systemd does: the rules are what they were
// when the container was started.
func (c *container) takeGrant(t testing.TB, disk *rig.Disk) {
	t.Helper()
	for _, path := range c.Cgroups() {
		dir, err := os.Open(path)
		rig.Must(t, err)
		defer dir.Close()
		err = linux.WriteFileAt(dir, "devices.deny", fmt.Sprintf("b %s rw", disk.Number()))
		if err == nil {
			continue
		}
		ids, flags, err := linux.DeviceProgramIDs(dir, false)
		if err != nil {
			continue // A cgroup of v1, for other things.
		}
		for _, id := range ids {
			old, err := linux.OpenProgram(id)
			rig.Must(t, err)
			defer old.Close()
			deny := []linux.Instruction{{Code: 0xb7}, {Code: 0x95}} // Return 0.
			program, err := linux.LoadDeviceProgram("test", true, deny)
			rig.Must(t, err)
			defer program.Close()
			rig.Must(t, linux.AttachDeviceProgram(dir, program, old, flags))
		}
	}
}

func TestLostGrantIsRestored(t *testing.T) {
	eachVersion(t, func(t *testing.T, node *node, container *container) {
		disk := rig.NewDisk(t, rig.MiB)
		_, err := node.Attach(rig.Context(t), container.request(disk, "/dev/xvdb"))
		rig.Must(t, err)
		container.takeGrant(t, disk)
		_, err = container.read(t, "/dev/xvdb", 1)
		wantRefused(t, err)
		rig.Must(t, node.Reconcile(rig.Context(t)))
		_, err = container.read(t, "/dev/xvdb", 1)
		rig.Must(t, err)
	})
}

func TestRemovedNodeIsRestored(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{})
	ctx := rig.Context(t)
	attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
	rig.Must(t, err)
	container.Run(t, "rm", "/dev/xvdb")
	rig.Must(t, node.Reconcile(ctx))
	_, err = container.read(t, "/dev/xvdb", 1)
	rig.Must(t, err)
	// What the container has put there itself is its own.
	container.Run(t, "sh", "-c", "rm /dev/xvdb; echo precious >/dev/xvdb")
	rig.Must(t, node.Reconcile(ctx))
	list, err := node.List(ctx)
	rig.Must(t, err)
	if len(list) != 1 || list[0].State != hotplug.Attached || !strings.Contains(list[0].Reason, "regular file at /dev/xvdb") {
		t.Errorf("the attachment is %+v", list)
	}
	_, err = node.Detach(ctx, attached.ID)
	rig.Must(t, err)
	if got := container.Run(t, "cat", "/dev/xvdb"); got != "precious" {
		t.Errorf("the container's own file has %q now", got)
	}
}

// Where the records were lost, nothing stays granted.
func TestNoRecordNoGrant(t *testing.T) {
	eachVersion(t, func(t *testing.T, node *node, container *container) {
		disk, before := rig.NewDisk(t, rig.MiB), rules(t, container)
		_, err := node.Attach(rig.Context(t), container.request(disk, "/dev/xvdb"))
		rig.Must(t, err)
		// The plugin of another node on this machine leaves it alone.
		rig.Must(t, newNodeNamed(t, "another").Reconcile(rig.Context(t)))
		_, err = container.read(t, "/dev/xvdb", 1)
		rig.Must(t, err)
		rig.Must(t, os.RemoveAll(filepath.Join(node.stateDir, "attachments")))
		rig.Must(t, node.restart(t).Reconcile(rig.Context(t)))
		_, err = container.read(t, "/dev/xvdb", 1)
		wantRefused(t, err)
		wantRules(t, container, before)
	})
}

func TestEndedContainer(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{})
	ctx := rig.Context(t)
	_, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
	rig.Must(t, err)
	rig.Must(t, container.Delete(ctx))
	rig.Must(t, node.Reconcile(ctx))
	wantNoAttachment(t, node)
	rig.Must(t, node.stage(t, "vol", disk))
}

// The disk goes while the plugin does not run, and another gets its number: the
// container must not have that one.
func TestAnotherDiskHasTheNumber(t *testing.T) {
	eachVersion(t, func(t *testing.T, node *node, container *container) {
		disk, other := rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB)
		ctx := rig.Context(t)
		attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
		rig.Must(t, err)
		node.Close()
		loseHold(t, disk.Number())
		other.TakePlaceOf(t, disk)
		again := node.restart(t)
		rig.Must(t, again.Reconcile(ctx))
		list, err := again.List(ctx)
		rig.Must(t, err)
		if len(list) != 1 || list[0].State != hotplug.Lost {
			t.Errorf("the attachment is %+v", list)
		}
		container.wantNothing(t, "/dev/xvdb")
		_, err = container.read(t, container.ownNode(t, other), 1)
		wantRefused(t, err)
		rig.Must(t, again.Reconcile(ctx)) // It stays to be seen.
		// To take away what was granted of the number would take it from the other disk.
		_, err = again.Attach(ctx, container.request(other, "/dev/xvdb"))
		wantErrorOf(t, err, volume.ErrInUse, "(attachment "+attached.ID+", Lost); detach it first")
		_, err = again.Detach(ctx, attached.ID)
		rig.Must(t, err)
		wantNoAttachment(t, again)
		_, err = again.Attach(ctx, container.request(other, "/dev/xvdb"))
		rig.Must(t, err)
	})
}

// What the container may open by its own rules stays so, whatever is attached and
// detached.
func TestOwnRulesStay(t *testing.T) {
	for _, v2 := range []bool{false, true} {
		t.Run(version(v2), func(t *testing.T) {
			node, disk := newNode(t), rig.NewDisk(t, rig.MiB)
			ctx := rig.Context(t)
			own, err := oci.DeviceAt(disk.Path, "/dev/own")
			rig.Must(t, err)
			own.Access = "r"
			container := startContainer(t, oci.Config{CgroupV2: v2, Devices: []oci.Device{own}})
			before := rules(t, container)
			wantRefused(t, container.write(t, "/dev/own", "x"))
			attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
			rig.Must(t, err)
			rig.Must(t, container.write(t, "/dev/xvdb", "x"))
			_, err = node.Detach(ctx, attached.ID)
			rig.Must(t, err)
			wantRules(t, container, before)
			_, err = container.read(t, "/dev/own", 1)
			rig.Must(t, err)
			wantRefused(t, container.write(t, "/dev/own", "x"))
		})
	}
}

// A privileged container may open everything: it gets the node alone, and nothing can
// be kept from it.
func TestPrivileged(t *testing.T) {
	for _, v2 := range []bool{false, true} {
		t.Run(version(v2), func(t *testing.T) {
			node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{CgroupV2: v2, Privileged: true})
			ctx, before := rig.Context(t), rules(t, container)
			request := container.request(disk, "/dev/xvdb")
			request.ReadOnly = true
			_, err := node.Attach(ctx, request)
			wantErrorOf(t, err, volume.ErrPrecondition, "is it privileged?")
			attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
			rig.Must(t, err)
			rig.Must(t, container.write(t, "/dev/xvdb", "x"))
			_, err = node.Detach(ctx, attached.ID)
			rig.Must(t, err)
			container.wantNothing(t, "/dev/xvdb")
			wantRules(t, container, before)
		})
	}
}

// Whoever has a device keeps it: a volume is not attached, nor an attached device
// staged.
func TestClaims(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, 8*rig.MiB), startContainer(t, oci.Config{})
	ctx, request := rig.Context(t), container.request(disk, "/dev/xvdb")
	rig.Must(t, node.stage(t, "vol", disk))
	_, err := node.Attach(ctx, request)
	wantErrorOf(t, err, volume.ErrInUse, "is staged as volume vol")
	rig.Must(t, node.publisher.Unstage("vol"))
	mounted := disk.Mount(t, "ext4")
	_, err = node.Attach(ctx, request)
	wantErrorOf(t, err, volume.ErrInUse, "mounted at "+mounted)
	rig.UnmountAll(t, mounted)
	attached, err := node.Attach(ctx, request)
	rig.Must(t, err)
	wantErrorOf(t, node.stage(t, "vol", disk), volume.ErrInUse, "is staged as volume hot-attach/"+attached.ID)
	// What is asked for otherwise is not there already.
	for _, change := range []func(*hotplug.Request){
		func(r *hotplug.Request) { r.Path = "/dev/xvdc" },
		func(r *hotplug.Request) { r.ReadOnly = true },
		func(r *hotplug.Request) { r.Shared = true },
	} {
		other := request
		change(&other)
		_, err = node.Attach(ctx, other)
		wantErrorOf(t, err, volume.ErrInUse, "is attached to this container at /dev/xvdb")
	}
	_, err = node.Detach(ctx, attached.ID)
	rig.Must(t, err)
	rig.Must(t, node.stage(t, "vol", disk))
}

// A volume that is staged can be attached by its ID, and is not unstaged under a
// container.
func TestVolume(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{})
	ctx := rig.Context(t)
	request := container.request(disk, "/dev/xvdb")
	request.Device, request.Volume = "", "vol"
	_, err := node.Attach(ctx, request)
	wantErrorOf(t, err, volume.ErrNotFound, "volume vol is not staged")
	rig.Must(t, node.stage(t, "vol", disk))
	unlock, err := node.inflight.Lock("vol")
	rig.Must(t, err)
	_, err = node.Attach(ctx, request)
	wantErrorOf(t, err, volume.ErrAborted, "vol")
	unlock()
	attached, err := node.Attach(ctx, request)
	rig.Must(t, err)
	wantErrorOf(t, node.CheckReleased(ctx, "vol"), volume.ErrInUse, attached.ID)
	rig.Must(t, node.CheckReleased(ctx, "another"))
	release := container.hold(t, "descriptor", "/dev/xvdb")
	_, err = node.Detach(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrInUse, "(holder)")
	wantErrorOf(t, node.CheckReleased(ctx, "vol"), volume.ErrInUse, "(holder)")
	release()
	rig.Must(t, node.CheckReleased(ctx, "vol"))
	wantNoAttachment(t, node)
}

func TestPlan(t *testing.T) {
	eachVersion(t, func(t *testing.T, node *node, container *container) {
		disk, before := rig.NewDisk(t, rig.MiB), rules(t, container)
		ctx := rig.Context(t)
		plan, err := node.Plan(ctx, container.request(disk, "/dev/xvdb"))
		rig.Must(t, err)
		steps := strings.Join(plan.Steps, "\n")
		for _, words := range []string{"record", disk.Path, "open device " + disk.Number().String() + " with access rw", "make the node /dev/xvdb"} {
			if !strings.Contains(steps, words) {
				t.Errorf("the plan lacks %q:\n%s", words, steps)
			}
		}
		if _, err := node.Plan(ctx, container.request(disk, "/dev/null")); err == nil {
			t.Error("a plan was made that cannot be carried out")
		}
		wantRules(t, container, before)
		wantNoAttachment(t, node)
		container.wantNothing(t, "/dev/xvdb")
	})
}

func TestManyDevices(t *testing.T) {
	const many = 64
	eachVersion(t, func(t *testing.T, node *node, container *container) {
		ctx, before := rig.Context(t), rules(t, container)
		var ids []string
		var names []string
		for i := range many {
			disk := rig.NewDisk(t, rig.MiB)
			rig.WriteAt(t, disk.Path, fmt.Sprintf("disk %02d", i), 0)
			name := fmt.Sprintf("/dev/xvd%02d", i)
			attached, err := node.Attach(ctx, container.request(disk, name))
			rig.Must(t, err)
			ids, names = append(ids, attached.ID), append(names, name)
		}
		want := make([]string, many)
		for i := range want {
			want[i] = fmt.Sprintf("disk %02d", i)
		}
		script := `for f in ` + strings.Join(names, " ") + `; do head -c 7 $f; echo; done`
		if diff := cmp.Diff(want, strings.Split(container.Run(t, "sh", "-c", script), "\n")); diff != "" {
			t.Errorf("the container reads (-want +got):\n%s", diff)
		}
		rig.Must(t, node.Reconcile(ctx))
		// Not in the order in which they came.
		slices.Sort(ids)
		for i, id := range ids {
			_, err := node.Detach(ctx, id)
			rig.Must(t, err)
			if i == many/2 {
				container.wantBasics(t)
			}
		}
		wantRules(t, container, before)
		wantNoAttachment(t, node)
	})
}

// Two attach the same disk and one detaches it, all at once, again and again: in the
// end one has it, or none.
func TestRace(t *testing.T) {
	eachVersion(t, func(t *testing.T, node *node, one *container) {
		two, disk := startContainer(t, oci.Config{}), rig.NewDisk(t, rig.MiB)
		ctx := rig.Context(t)
		beforeOne, beforeTwo := rules(t, one), rules(t, two)
		for range 20 {
			var all sync.WaitGroup
			for _, container := range []*container{one, two} {
				all.Go(func() { node.Attach(ctx, container.request(disk, "/dev/xvdb")) }) // One of them fails.
			}
			all.Go(func() {
				list, _ := node.List(ctx)
				for _, attached := range list {
					node.Detach(ctx, attached.ID) // It may be gone already.
				}
			})
			all.Go(func() { node.Reconcile(ctx) }) // What it cannot do now is seen below.
			all.Wait()
			list, err := node.List(ctx)
			rig.Must(t, err)
			if len(list) > 1 {
				t.Fatalf("two have the disk: %+v", list)
			}
			for _, container := range []*container{one, two} {
				_, err := container.read(t, "/dev/xvdb", 1)
				has := len(list) == 1 && list[0].PID == container.pid
				if (err == nil) != has {
					t.Errorf("container %s can open the disk: %v; of attachments there are %+v", container.Name, err, list)
				}
			}
			for _, attached := range list {
				_, err := node.Detach(ctx, attached.ID)
				rig.Must(t, err)
			}
		}
		wantRules(t, one, beforeOne)
		wantRules(t, two, beforeTwo)
	})
}

// A plugin that was started again without the host's processes cannot see the
// container. It does not take it for ended.
func TestContainerOutOfSight(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{})
	ctx := rig.Context(t)
	attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
	rig.Must(t, err)
	// As such a plugin finds it: the namespace in the record is not its own.
	path := filepath.Join(node.stateDir, "attachments", attached.ID+".json")
	text, err := os.ReadFile(path)
	rig.Must(t, err)
	rig.Must(t, os.WriteFile(path, []byte(strings.Replace(string(text), "pid:[", "pid:[1", 1)), 0o600))
	wantErrorOf(t, node.Reconcile(ctx), volume.ErrPrecondition, "hostPID: true")
	_, err = node.Detach(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrPrecondition, "hostPID: true")
	_, err = container.read(t, "/dev/xvdb", 1)
	rig.Must(t, err)
	rig.Must(t, os.WriteFile(path, text, 0o600))
	rig.Must(t, node.Reconcile(ctx))
	_, err = node.Detach(ctx, attached.ID)
	rig.Must(t, err)
}
