package attack

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// loopOver sets up a loop device over a file or device, as an administrator or another
// driver may have, until the test ends.
func loopOver(t *testing.T, path string) string {
	t.Helper()
	backing, err := os.OpenFile(path, os.O_RDWR, 0)
	rig.Must(t, err)
	defer backing.Close()
	for {
		minor, err := linux.FreeLoop()
		rig.Must(t, err)
		loop, err := os.OpenFile(linux.LoopPath(minor), os.O_RDWR, 0)
		rig.Must(t, err)
		err = linux.ConfigureLoop(loop, linux.LoopConfig{Backing: backing, Label: "attack", BlockSize: 512})
		if err != nil {
			loop.Close()
			continue // Another process was faster.
		}
		t.Cleanup(func() {
			rig.Must(t, linux.ClearLoop(loop))
			loop.Close()
		})
		return linux.LoopPath(minor)
	}
}

// named tries each path in a PersistentVolume of the attacker's.
func named(t *testing.T, plugin *rig.Plugin, paths map[string]string) {
	t.Helper()
	for name, path := range paths {
		ctx, attacker := rig.Context(t), plugin.NewVolume(t, "attacker", path)
		refused(t, name+": NodeStageVolume", attacker.Stage(ctx), codes.FailedPrecondition)
		target := attacker.Target(t, "attacker")
		refused(t, name+": NodePublishVolume", attacker.Publish(ctx, target), codes.FailedPrecondition)
		if deviceAt(t, target) != 0 {
			t.Errorf("%s: the attacker has a device", name)
		}
		rig.Must(t, attacker.Unpublish(ctx, target))
		rig.Must(t, attacker.Unstage(ctx))
	}
}

// The author of a PersistentVolume names the partition of a pool's disk in which another
// tenant has data, while that one's pod is down, or the disk, or what lies on them.
func TestAttackStaticNamesThePoolsDisk(t *testing.T) {
	node, ctx := newNode(t), rig.Context(t)
	victim := node.create(t, "disks", victimName)
	target := victim.Target(t, "victim")
	rig.Must(t, victim.Stage(ctx))
	rig.Must(t, victim.Publish(ctx, target))
	rig.WriteAt(t, target, secret, 0)
	rig.Must(t, victim.Unpublish(ctx, target))
	rig.Must(t, victim.Unstage(ctx))
	partition := node.disk.PartitionPath(2)
	if got := rig.ReadPastCache(t, partition, len(secret), 0); got != secret {
		t.Fatalf("the partition has %q", got)
	}
	named(t, node.Plugin, map[string]string{
		"partition": partition, "claim": node.disk.PartitionPath(1), "disk": node.disk.Path,
		"loop device over the partition": loopOver(t, partition),
		"loop device over the disk":      loopOver(t, node.disk.Path),
	})
}

// A disk that was a pool's still is when the configuration no longer has that pool.
func TestAttackStaticNamesAForgottenPoolsDisk(t *testing.T) {
	node, other := newNode(t), rig.NewPlugin(t, nil)
	node.create(t, "disks", victimName)
	named(t, other, map[string]string{"partition": node.disk.PartitionPath(2), "disk": node.disk.Path})
}

// The same with a loop device of a pool of files: that of a volume that is staged, and
// one that somebody made over the file of a volume that is not.
func TestAttackStaticNamesThePoolsLoopDevice(t *testing.T) {
	node := newNode(t)
	node.create(t, "files", victimName)
	loop := loopOver(t, filepath.Join(node.dir, "volumes", victimName, "data"))
	named(t, node.Plugin, map[string]string{"over the file": loop, "over that": loopOver(t, loop)})
	ctx := rig.Context(t)
	staged := node.create(t, "files", "staged")
	rig.Must(t, staged.Stage(ctx))
	defer func() { rig.Must(t, staged.Unstage(ctx)) }()
	target := staged.Target(t, "victim")
	rig.Must(t, staged.Publish(ctx, target))
	minor := unix.Minor(deviceAt(t, target))
	rig.Must(t, staged.Unpublish(ctx, target))
	named(t, node.Plugin, map[string]string{"of a staged volume": linux.LoopPath(minor)})
}

// Two PersistentVolumes name one disk in ways that look like two.
func TestAttackStaticNamesAnotherVolumesDisk(t *testing.T) {
	plugin, ctx, disk := rig.NewPlugin(t, nil), rig.Context(t), rig.NewDisk(t, 16*rig.MiB)
	part := disk.AddPartition(t, 1)
	over, overPart := loopOver(t, disk.Path), loopOver(t, part)
	for name, test := range map[string]struct {
		victim  string
		attacks map[string]string
	}{
		"disk":      {disk.Path, map[string]string{"partition": part, "loop device": over, "loop device over the partition": overPart}},
		"partition": {part, map[string]string{"disk": disk.Path, "loop device": overPart, "loop device over the disk": over}},
		"loop":      {overPart, map[string]string{"disk": disk.Path, "partition": part}},
	} {
		t.Run(name, func(t *testing.T) {
			victim := plugin.NewVolume(t, "victim", test.victim)
			rig.Must(t, victim.Stage(ctx))
			defer func() { rig.Must(t, victim.Unstage(ctx)) }()
			named(t, plugin, test.attacks)
		})
	}
}
