package hotplug

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A container that is restarted is another one. It gets the device if that was asked
// for.
func TestCRIRestartedContainer(t *testing.T) {
	for name, restore := range map[string]bool{"restore": true, "do not": false} {
		t.Run(name, func(t *testing.T) {
			disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
			ctx := rig.Context(t)
			sandbox, containers := node.run(t, pod("default", "db-0"), "postgres")
			wanted := request(disk, "default", "db-0", "postgres")
			wanted.Restore = restore
			attached, err := node.Attach(ctx, wanted)
			rig.Must(t, err)

			rig.Must(t, containers[0].Stop(ctx))
			if restore {
				node.wantState(t, hotplug.Waiting, "no container of pod default/db-0/postgres with UID "+sandbox.UID+" runs")
			} else {
				rig.Must(t, node.Reconcile(ctx))
				node.wantForgotten(t)
			}
			postgres := startIn(t, sandbox, "postgres")
			postgres.wantNone(t, "/dev/xvdb", disk)
			rig.Must(t, node.Reconcile(ctx))
			if !restore {
				postgres.wantNone(t, "/dev/xvdb", disk)
				node.wantForgotten(t)
				return
			}
			if one := node.only(t); one.State != hotplug.Attached || one.ID != attached.ID || one.ContainerID != postgres.ID {
				t.Errorf("after the restart: %+v", one)
			}
			postgres.wantDevice(t, "/dev/xvdb", disk)
			_, err = node.Detach(ctx, attached.ID)
			rig.Must(t, err)
			postgres.wantNone(t, "/dev/xvdb", disk)
		})
	}
}

// A restart that nobody saw: the container is another one at the next look.
func TestCRIRestartedContainerUnseen(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	sandbox, containers := node.run(t, pod("default", "db-0"), "postgres", "backup")
	wanted := request(disk, "default", "db-0", "postgres")
	wanted.Restore = true
	attached, err := node.Attach(ctx, wanted)
	rig.Must(t, err)
	rig.Must(t, containers[0].Delete(ctx))
	postgres := startIn(t, sandbox, "postgres")
	if one := node.wantState(t, hotplug.Attached, ""); one.ID != attached.ID || one.ContainerID != postgres.ID {
		t.Errorf("after the restart: %+v", one)
	}
	postgres.wantDevice(t, "/dev/xvdb", disk)
	containers[1].wantNone(t, "/dev/xvdb", disk)
}

// A pod of the same name is not the same pod. What waits for a pod is forgotten with
// it.
func TestCRIReusedName(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	sandbox, _ := node.run(t, pod("default", "db-0"), "postgres")
	wanted := request(disk, "default", "db-0", "postgres")
	wanted.Restore = true
	_, err := node.Attach(ctx, wanted)
	rig.Must(t, err)
	rig.Must(t, sandbox.Stop(ctx))
	_, containers := node.run(t, pod("default", "db-0"), "postgres")
	for range 2 {
		node.wantState(t, hotplug.Waiting, "with UID "+sandbox.UID)
		containers[0].wantNone(t, "/dev/xvdb", disk)
	}
	rig.Must(t, sandbox.Delete(ctx))
	for range 2 {
		rig.Must(t, node.Reconcile(ctx))
		node.wantForgotten(t)
		containers[0].wantNone(t, "/dev/xvdb", disk)
	}
	// By the name alone, it is found.
	attached, err := node.Attach(ctx, wanted)
	rig.Must(t, err)
	if attached.ContainerID != containers[0].ID {
		t.Errorf("attached: %+v", attached)
	}
	containers[0].wantDevice(t, "/dev/xvdb", disk)
}

// Whether it is to be attached again is a part of what was asked for: asked for
// otherwise, it is not there already, and stays as it was.
func TestCRIRestoreAskedForOtherwise(t *testing.T) {
	for name, restore := range map[string]bool{"restore": true, "do not": false} {
		t.Run(name, func(t *testing.T) {
			disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
			ctx := rig.Context(t)
			_, containers := node.run(t, pod("default", "db-0"), "postgres")
			wanted := request(disk, "default", "db-0", "postgres")
			wanted.Restore = restore
			attached, err := node.Attach(ctx, wanted)
			rig.Must(t, err)
			again, err := node.Attach(ctx, wanted)
			if err != nil || again.ID != attached.ID {
				t.Errorf("asked for again: %+v, %v", again, err)
			}
			wanted.Restore = !restore
			_, err = node.Attach(ctx, wanted)
			wantErrorOf(t, err, volume.ErrInUse, "is attached to this container at /dev/xvdb (attachment "+attached.ID+", Attached)")
			if one := node.only(t); one.ID != attached.ID || one.Restore != restore {
				t.Errorf("it became %+v", one)
			}
			containers[0].wantDevice(t, "/dev/xvdb", disk)
		})
	}
}
