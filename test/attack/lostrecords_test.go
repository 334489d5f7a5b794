package attack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// whatIsLost are the records of a volume: all of them, and each one.
var whatIsLost = map[string]string{"all": "*", "what is staged": "device", "what is published": "publication-*"}

// Records are lost, and a volume is deleted or unstaged under the pod that has it.
func TestAttackLostRecordsTakeAway(t *testing.T) {
	for _, pool := range poolKinds {
		for name, pattern := range whatIsLost {
			for _, readOnly := range []bool{false, true} {
				about := pool + " " + name
				if readOnly {
					about += " read-only"
				}
				t.Run(about, func(t *testing.T) { takeAway(t, pool, pattern, readOnly) })
			}
		}
	}
}

func takeAway(t *testing.T, pool, pattern string, readOnly bool) {
	node, ctx := newNode(t), rig.Context(t)
	volume := node.create(t, pool, victimName)
	target := volume.Target(t, "victim")
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		rig.Must(t, errors.Join(volume.Unpublish(ctx, target), volume.Unstage(ctx)))
	})
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	rig.WriteAt(t, target, secret, 0)
	if readOnly {
		rig.Must(t, volume.Unpublish(ctx, target))
		rig.Must(t, volume.PublishReadOnly(ctx, target))
	}
	number := deviceAt(t, target)
	lose(t, node.StateDir, pattern)
	refused(t, "NodeUnstageVolume", volume.Unstage(ctx), codes.FailedPrecondition)
	refused(t, "DeleteVolume", node.remove(ctx, volume.ID), codes.FailedPrecondition)
	// Kubelet, restarted, does it all again under the running pod.
	rig.Must(t, volume.Stage(ctx))
	if readOnly {
		rig.Must(t, volume.PublishReadOnly(ctx, target))
	} else {
		rig.Must(t, volume.Publish(ctx, target))
	}
	holds(t, target, number)
	rig.Must(t, volume.Unpublish(ctx, target))
	rig.Must(t, volume.Unstage(ctx))
}

// Records are lost, and a volume of one pod is published for a second one.
func TestAttackLostRecordsPublishTwice(t *testing.T) {
	for _, pool := range append([]string{"named"}, poolKinds...) {
		for name, pattern := range whatIsLost {
			for readOnly, mode := range map[bool]csi.VolumeCapability_AccessMode_Mode{
				false: csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, true: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
			} {
				t.Run(pool+" "+name+" "+mode.String(), func(t *testing.T) { publishTwice(t, pool, pattern, mode, readOnly) })
			}
		}
	}
}

func publishTwice(t *testing.T, pool, pattern string, mode csi.VolumeCapability_AccessMode_Mode, readOnly bool) {
	node, ctx := newNode(t), rig.Context(t)
	var volume *rig.Volume
	if pool == "named" {
		volume = node.NewVolume(t, "disk-1", rig.NewDisk(t, rig.MiB).Path)
	} else {
		volume = node.create(t, pool, victimName)
	}
	volume.Mode = mode
	first, second := volume.Target(t, "victim"), volume.Target(t, "attacker")
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		rig.Must(t, errors.Join(volume.Unpublish(ctx, second), volume.Unpublish(ctx, first), volume.Unstage(ctx)))
	})
	publish := volume.Publish
	if readOnly {
		publish = volume.PublishReadOnly
	}
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, publish(ctx, first))
	for range 2 {
		lose(t, node.StateDir, pattern)
		refused(t, "NodePublishVolume at a second target", volume.Publish(ctx, second), codes.FailedPrecondition)
		refused(t, "NodePublishVolume at a second target, to read", volume.PublishReadOnly(ctx, second), codes.FailedPrecondition)
		// The first pod is not the worse for it, and what was lost is known again.
		rig.Must(t, volume.Stage(ctx))
		rig.Must(t, publish(ctx, first))
	}
	lose(t, node.StateDir, pattern)
	rig.Must(t, volume.Stage(ctx))
	refused(t, "NodePublishVolume after NodeStageVolume", volume.Publish(ctx, second), codes.FailedPrecondition)
	rig.Must(t, volume.Unpublish(ctx, first))
	rig.Must(t, volume.Publish(ctx, second))
}

// Records are lost, and a second PersistentVolume names the disk that a pod has.
func TestAttackLostRecordsAnotherHandle(t *testing.T) {
	for name, pattern := range whatIsLost {
		t.Run(name, func(t *testing.T) {
			plugin, ctx, disk := rig.NewPlugin(t, nil), rig.Context(t), rig.NewDisk(t, rig.MiB)
			target := use(t, plugin.NewVolume(t, "disk-1", disk.Path), "victim")
			rig.WriteAt(t, target, secret, 0)
			lose(t, plugin.StateDir, pattern)
			attacker := plugin.NewVolume(t, "disk-2", disk.Path)
			refused(t, "NodeStageVolume", attacker.Stage(ctx), codes.FailedPrecondition)
			refused(t, "NodePublishVolume", attacker.Publish(ctx, attacker.Target(t, "attacker")), codes.FailedPrecondition)
			holds(t, target, deviceAt(t, disk.Path))
		})
	}
}

// A record that cannot be read stops neither the others nor its own volume, and takes
// no protection away.
func TestAttackLostRecordsMalformed(t *testing.T) {
	for name, spoil := range map[string]func(string) error{
		"another text": func(path string) error { return os.Symlink("no record", path) },
		"a file":       func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		for _, record := range []string{"device", "publication-*", "hold"} {
			t.Run(name+" "+record, func(t *testing.T) {
				plugin, ctx := rig.NewPlugin(t, nil), rig.Context(t)
				sick := plugin.NewVolume(t, "sick", rig.NewDisk(t, rig.MiB).Path)
				target := use(t, sick, "victim")
				paths, err := filepath.Glob(filepath.Join(plugin.StateDir, "*", record))
				rig.Must(t, err)
				for _, path := range paths {
					rig.Must(t, errors.Join(os.Remove(path), spoil(path)))
				}
				other := use(t, plugin.NewVolume(t, "other", rig.NewDisk(t, rig.MiB).Path), "pod")
				if deviceAt(t, other) == 0 {
					t.Error("the other volume is not published")
				}
				refused(t, "NodeUnstageVolume", sick.Unstage(ctx), codes.FailedPrecondition)
				refused(t, "NodePublishVolume at a second target", sick.Publish(ctx, sick.Target(t, "attacker")), codes.FailedPrecondition)
				rig.Must(t, sick.Stage(ctx))
				rig.Must(t, sick.Publish(ctx, target))
			})
		}
	}
}
