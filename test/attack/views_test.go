package attack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A pod whose volume is read-only has a loop device of its own, and may do with it what
// the loop driver lets it. It wants another pod to take that one, or to keep it.
func TestAttackReadOnlyView(t *testing.T) {
	t.Run("label of the victim's target, and another file", victimTakesNoForeignView)
	t.Run("label of another reader's target", readerTakesNoForeignView)
	t.Run("changed views do not leak", changedViewsDoNotLeak)
	t.Run("republishing sets a view back", republishSetsBack)
	t.Run("detached view keeps its number", detachedViewKeepsItsNumber)
	t.Run("detached volume keeps its number", detachedVolumeKeepsItsNumber)
	t.Run("view of a dead filesystem", viewOfADeadFilesystem)
}

// onceLabel is the label by which the plugin once knew the view of a target.
func onceLabel(t *testing.T, volume *rig.Volume, target string, disk *rig.Disk) string {
	t.Helper()
	seq, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(disk.Path), "diskseq"))
	rig.Must(t, err)
	number, err := strconv.ParseUint(strings.TrimSpace(string(seq)), 10, 64)
	rig.Must(t, err)
	hash := sha256.Sum256([]byte(volume.ID + "\x00" + target))
	return "rawblock-ro:" + hex.EncodeToString(hash[:16]) + ":" + strconv.FormatUint(number, 16)
}

// read stages and publishes a volume read-only until the test ends, and returns the target.
func read(t *testing.T, volume *rig.Volume, pod string) string {
	t.Helper()
	target := volume.Target(t, pod)
	takeDown(t, volume, target)
	ctx := rig.Context(t)
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.PublishReadOnly(ctx, target))
	return target
}

// takeDown unpublishes and unstages a volume when the test ends.
func takeDown(t *testing.T, volume *rig.Volume, target string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	t.Cleanup(func() {
		if err := errors.Join(volume.Unpublish(ctx, target), volume.Unstage(ctx)); err != nil {
			t.Errorf("take down %s: %v", volume.ID, err)
		}
	})
}

func victimTakesNoForeignView(t *testing.T) {
	plugin, own, disk := rig.NewPlugin(t, nil), rig.NewDisk(t, volumeSize), rig.NewDisk(t, volumeSize)
	rig.WriteAt(t, disk.Path, secret, 0)
	attacker, victim := plugin.NewVolume(t, "attacker", own.Path), plugin.NewVolume(t, "victim", disk.Path)
	mine, theirs := read(t, attacker, "attacker"), victim.Target(t, "victim")
	changeFile(t, mine, bait(t, volumeSize))
	relabel(t, mine, onceLabel(t, victim, theirs, disk))
	read(t, victim, "victim")
	shows(t, "the victim", theirs, secret)
	if deviceAt(t, mine) == deviceAt(t, theirs) {
		t.Error("the victim has the attacker's device")
	}
}

func readerTakesNoForeignView(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, volumeSize), rig.Context(t)
	rig.WriteAt(t, disk.Path, secret, 0)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	volume.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	mine, theirs := read(t, volume, "attacker"), volume.Target(t, "victim")
	relabel(t, mine, onceLabel(t, volume, theirs, disk))
	rig.Must(t, volume.PublishReadOnly(ctx, theirs))
	t.Cleanup(func() { rig.Must(t, volume.Unpublish(context.WithoutCancel(ctx), theirs)) })
	changeFile(t, mine, bait(t, volumeSize))
	shows(t, "the victim", theirs, secret)
}

func changedViewsDoNotLeak(t *testing.T) {
	plugin := rig.NewPlugin(t, nil)
	for _, way := range []string{"label", "file", "both"} {
		disk, ctx, own := rig.NewDisk(t, volumeSize), rig.Context(t), bait(t, volumeSize)
		volume := plugin.NewVolume(t, "vol-"+way, disk.Path)
		target := volume.Target(t, "attacker")
		rig.Must(t, volume.Stage(ctx))
		rig.Must(t, volume.PublishReadOnly(ctx, target))
		if way != "label" {
			changeFile(t, target, own)
		}
		if way != "file" {
			relabel(t, target, "mine")
		}
		rig.Must(t, volume.Unpublish(ctx, target))
		rig.Must(t, volume.Unstage(ctx))
		for _, path := range []string{disk.Path, own} {
			for _, left := range loopsOver(t, path) {
				t.Errorf("%s changed: /dev/%s is left over %s", way, left, path)
				detach(t, "/dev/"+left)
			}
		}
	}
}

func republishSetsBack(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, volumeSize), rig.Context(t)
	rig.WriteAt(t, disk.Path, secret, 0)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := read(t, volume, "attacker")
	number := deviceAt(t, target)
	changeFile(t, target, bait(t, volumeSize))
	relabel(t, target, "mine")
	shows(t, "the attacker", target, baited)
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.PublishReadOnly(ctx, target))
	holdsPastCache(t, target, number)
}

func detachedViewKeepsItsNumber(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, volumeSize), rig.Context(t)
	rig.WriteAt(t, disk.Path, secret, 0)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := read(t, volume, "attacker")
	number := deviceAt(t, target)
	detach(t, target)
	other := rig.NewDisk(t, volumeSize)
	tenant := plugin.NewVolume(t, "tenant", other.Path)
	if got := deviceAt(t, read(t, tenant, "tenant")); got == number {
		t.Errorf("the next tenant has the device %#x of the attacker's target", got)
	}
	if got := unix.Mkdev(7, other.Number().Minor); got == number {
		t.Errorf("the next disk has the device %#x of the attacker's target", got)
	}
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.PublishReadOnly(ctx, target))
	holdsPastCache(t, target, number)
	staysAfterUse(t, target)
}

func detachedVolumeKeepsItsNumber(t *testing.T) {
	node, ctx := newNode(t), rig.Context(t)
	attacker, victim := node.create(t, "files", "attacker"), node.create(t, "files", victimName)
	mine := use(t, attacker, "attacker")
	number := deviceAt(t, mine)
	rig.WriteAt(t, mine, baited, 0)
	detach(t, mine)
	theirs := use(t, victim, "victim")
	rig.WriteAt(t, theirs, secret, 0)
	if deviceAt(t, theirs) == number {
		t.Errorf("the victim has the device %#x of the attacker's target", number)
	}
	shows(t, "the attacker", mine, baited)
	rig.Must(t, attacker.Stage(ctx))
	rig.Must(t, attacker.Publish(ctx, mine))
	shows(t, "the attacker", mine, baited)
	staysAfterUse(t, mine)
}

// A pod has its view show a file on a filesystem that it then kills. Neither is another
// volume kept from anything by that, nor the pod from being taken down.
func viewOfADeadFilesystem(t *testing.T) {
	node, disk, ctx := newNode(t), rig.NewDisk(t, volumeSize), rig.Context(t)
	dir := newXFS(t)
	bait := filepath.Join(dir, "bait")
	rig.Must(t, os.WriteFile(bait, nil, 0o600))
	rig.Must(t, os.Truncate(bait, volumeSize))
	attacker, victim := node.NewVolume(t, "attacker", disk.Path), node.create(t, "files", victimName)
	mine := attacker.Target(t, "attacker")
	rig.Must(t, attacker.Stage(ctx))
	rig.Must(t, attacker.PublishReadOnly(ctx, mine))
	changeFile(t, mine, bait)
	shutDown(t, dir)
	theirs := victim.Target(t, "victim")
	rig.Must(t, victim.Stage(ctx))
	rig.Must(t, victim.Publish(ctx, theirs))
	named := node.NewVolume(t, "named", rig.NewDisk(t, volumeSize).Path)
	rig.Must(t, named.Stage(ctx))
	rig.Must(t, named.Unstage(ctx))
	rig.Must(t, victim.Unpublish(ctx, theirs))
	rig.Must(t, victim.Unstage(ctx))
	rig.Must(t, attacker.Unpublish(ctx, mine))
	rig.Must(t, attacker.Unstage(ctx))
	for _, left := range loopsOver(t, bait) {
		t.Errorf("/dev/%s is left", left)
	}
}

// hungViews are the ways in which a pod has its view keep from returning whoever asks for it,
// once the server of its file hangs.
var hungViews = map[string]func(t *testing.T, target string, server *fuse){
	"file that does not answer": func(*testing.T, string, *fuse) {},
	// The loop driver waits for what is read, and lets nobody else ask meanwhile
	// (loop_set_status in the kernel's drivers/block/loop.c).
	"driver that waits for it": func(t *testing.T, target string, server *fuse) {
		node, read := openNode(t, target), make(chan struct{})
		t.Cleanup(func() { node.Close() })
		go func() {
			defer close(read)
			rig.ReadDirect(target) // Fails, once the server ends.
		}()
		server.hear(t)
		set := make(chan struct{})
		go func() {
			defer close(set)
			unix.IoctlLoopSetStatus64(int(node.Fd()), &unix.LoopInfo64{Offset: 512})
		}()
		t.Cleanup(func() { server.end(); <-read; <-set })
		time.Sleep(200 * time.Millisecond) // Until it waits, which cannot be seen.
	},
}

// A pod has its view show a file whose server then hangs, and which is called as that of
// another's volume. That keeps nobody else's volumes from anything, and no plugin from
// starting; and the pod is taken down once its server has ended.
func TestAttackHungView(t *testing.T) {
	for name, hang := range hungViews {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node, disk, ctx := newNode(t), rig.NewDisk(t, volumeSize), rig.Context(t)
			attacker, victim := node.NewVolume(t, "attacker", disk.Path), node.create(t, "files", victimName)
			onDisk := node.create(t, "disks", victimName)
			mine, theirs := attacker.Target(t, "attacker"), victim.Target(t, "victim")
			rig.Must(t, attacker.Stage(ctx))
			rig.Must(t, attacker.PublishReadOnly(ctx, mine))
			mounted := filepath.Join(reachable(t), filepath.Base(victim.ID))
			rig.Must(t, os.Mkdir(mounted, 0o755))
			server := newFuseAt(t, mounted)
			takeDown(t, attacker, mine)
			t.Cleanup(server.end)
			changeFile(t, mine, filepath.Join(mounted, "data"))
			server.hang(t)
			hang(t, mine, server)
			// Kubelet asks for the volume of the attacker, too, and must not wear the plugin out.
			for range 2 {
				_, err := node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: attacker.ID, VolumePath: mine})
				refused(t, "NodeGetVolumeStats of the attacker's volume", err, codes.Aborted)
			}
			named := node.NewVolume(t, "named", rig.NewDisk(t, volumeSize).Path)
			for _, step := range []struct {
				what string
				do   func() error
			}{
				{"stage", func() error { return victim.Stage(ctx) }},
				{"publish", func() error { return victim.Publish(ctx, theirs) }},
				{"stage a disk", func() error { return named.Stage(ctx) }},
				{"unstage a disk", func() error { return named.Unstage(ctx) }},
				{"unpublish", func() error { return victim.Unpublish(ctx, theirs) }},
				{"unstage", func() error { return victim.Unstage(ctx) }},
				{"delete", func() error { return node.remove(ctx, victim.ID) }},
				{"delete from a disk", func() error { return node.remove(ctx, onDisk.ID) }},
				{"start a plugin", func() error {
					publisher, err := publish.New(node.StateDir, blockdev.NewSysfs("/sys"))
					if err != nil {
						return err
					}
					return publisher.Recover()
				}},
			} {
				_, err := within(t, step.what, func() (struct{}, error) { return struct{}{}, step.do() })
				if err != nil {
					t.Errorf("%s: %v", step.what, err)
				}
			}
		})
	}
}

// A pod writes so much that the driver of its volume takes long to answer, as one does here
// whose file is on a server that hangs. It was known before, so nobody waits for it.
func TestAttackSlowVolume(t *testing.T) {
	node, ctx, server := newNode(t), rig.Context(t), newFuse(t)
	file, err := os.OpenFile(server.file, os.O_RDWR, 0)
	rig.Must(t, err)
	minor, err := linux.FreeLoop()
	rig.Must(t, err)
	loop, err := os.OpenFile(linux.LoopPath(minor), os.O_RDWR, 0)
	rig.Must(t, err)
	rig.Must(t, linux.ConfigureLoop(loop, linux.LoopConfig{Backing: file, Label: "rawblock-test"}))
	rig.Must(t, file.Close())
	t.Cleanup(func() {
		server.end()
		rig.Must(t, linux.ClearLoop(loop))
		loop.Close()
	})
	victim := node.NewVolume(t, "victim", rig.NewDisk(t, volumeSize).Path)
	for _, hangs := range []bool{false, true} {
		if hangs {
			server.hang(t)
		}
		rig.Must(t, victim.Stage(ctx))
		rig.Must(t, victim.Unstage(ctx))
	}
}

// The same by a container that a disk was attached to for reading: the others are attached
// to, detached from and reconciled as before.
func TestAttackHungAttachment(t *testing.T) {
	for name, hang := range hungViews {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			manager, disk, other, ctx := newHotAttach(t), rig.NewDisk(t, volumeSize), rig.NewDisk(t, volumeSize), rig.Context(t)
			container, victim, server := rig.NewContainer(t, oci.Config{}), rig.NewContainer(t, oci.Config{}), newFuse(t)
			pid, err := container.PID(ctx)
			rig.Must(t, err)
			victimPID, err := victim.PID(ctx)
			rig.Must(t, err)
			attached, err := manager.Attach(ctx, hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb", ReadOnly: true})
			rig.Must(t, err)
			node := fmt.Sprintf("/proc/%d/root/dev/xvdb", pid)
			changeFile(t, node, server.file)
			t.Cleanup(func() {
				server.end()
				_, err := manager.Detach(context.WithoutCancel(ctx), attached.ID)
				rig.Must(t, err)
			})
			server.hang(t)
			hang(t, node, server)
			for range 2 {
				theirs, err := within(t, "attach", func() (hotplug.Attachment, error) {
					return manager.Attach(ctx, hotplug.Request{Device: other.Path, Target: hotplug.Target{PID: victimPID}, Path: "/dev/xvdb"})
				})
				rig.Must(t, err)
				err, _ = within(t, "reconcile", func() (error, error) { return manager.Reconcile(ctx), nil })
				t.Logf("reconcile: %v", err)
				_, err = within(t, "detach", func() (hotplug.Attachment, error) { return manager.Detach(ctx, theirs.ID) })
				rig.Must(t, err)
			}
			again, err := within(t, "start", func() (*hotAttach, error) { return startHotAttach(t, manager.stateDir), nil })
			rig.Must(t, err)
			err, _ = within(t, "reconcile after a start", func() (error, error) { return again.Reconcile(ctx), nil })
			t.Logf("reconcile after a start: %v", err)
		})
	}
}

// holdsPastCache is as holds, for what may have been cached before.
func holdsPastCache(t *testing.T, target string, number uint64) {
	t.Helper()
	if got := deviceAt(t, target); got != number {
		t.Errorf("the target shows device %#x, not %#x", got, number)
	}
	shows(t, "the pod", target, secret)
}

// staysAfterUse fails the test where a loop device goes with its last user.
func staysAfterUse(t *testing.T, path string) {
	t.Helper()
	if status := statusOf(t, path); status.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 {
		t.Errorf("%s still goes with its last user", path)
	}
}
