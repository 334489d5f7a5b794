package hotplug

import (
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A container is found by the names of its pod and its own, or by the pod's alone.
func TestCRIPodByName(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	sandbox, containers := node.run(t, pod("default", "db-0"), "postgres")
	_, others := node.run(t, pod("default", "db-1"), "postgres")
	postgres, other := containers[0], others[0]
	for _, name := range []string{"postgres", ""} {
		t.Run("container "+name, func(t *testing.T) {
			postgres.wantNone(t, "/dev/xvdb", disk)
			attached, err := node.Attach(ctx, request(disk, "default", "db-0", name))
			rig.Must(t, err)
			want := hotplug.Pod{Namespace: "default", Name: "db-0", UID: sandbox.UID, Container: "postgres"}
			if attached.State != hotplug.Attached || attached.ContainerID != postgres.ID || *attached.Target.Pod != want {
				t.Errorf("attached: %+v, %+v", attached, attached.Target.Pod)
			}
			rig.Must(t, node.Reconcile(ctx))
			postgres.wantDevice(t, "/dev/xvdb", disk)
			other.wantNone(t, "/dev/xvdb", disk)
			_, err = node.Detach(ctx, attached.ID)
			rig.Must(t, err)
			postgres.wantNone(t, "/dev/xvdb", disk)
			node.wantForgotten(t)
		})
	}
}

func TestCRIPodReadOnly(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	_, containers := node.run(t, pod("default", "db-0"), "postgres")
	wanted := request(disk, "default", "db-0", "")
	wanted.ReadOnly = true
	attached, err := node.Attach(ctx, wanted)
	rig.Must(t, err)
	containers[0].wantReadOnly(t, "/dev/xvdb", disk)
	_, err = node.Detach(ctx, attached.ID)
	rig.Must(t, err)
	containers[0].wantNone(t, "/dev/xvdb", disk)
}

// What is not named well is not guessed.
func TestCRIPodNotFound(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	first, containers := node.run(t, pod("default", "db-0"), "postgres", "backup")
	ended, _ := node.run(t, pod("default", "ended"), "main")
	rig.Must(t, ended.Stop(ctx))
	twins := []string{"twin-1", "twin-2"}
	for _, uid := range twins {
		twin := pod("default", "twin")
		twin.UID = uid
		node.run(t, twin, "main")
	}
	for name, test := range map[string]struct {
		target hotplug.Pod
		want   error
		says   []string
	}{
		"no container named":   {hotplug.Pod{Namespace: "default", Name: "db-0"}, volume.ErrInvalid, []string{"postgres", "backup", "name one of them"}},
		"unknown pod":          {hotplug.Pod{Namespace: "default", Name: "db-2"}, volume.ErrNotFound, []string{"no container of pod default/db-2 runs"}},
		"another namespace":    {hotplug.Pod{Namespace: "other", Name: "db-0", Container: "postgres"}, volume.ErrNotFound, []string{"other/db-0"}},
		"unknown container":    {hotplug.Pod{Namespace: "default", Name: "db-0", Container: "redis"}, volume.ErrNotFound, []string{"no container redis runs", "postgres", "backup"}},
		"another UID":          {hotplug.Pod{Namespace: "default", Name: "db-0", UID: first.UID + "x", Container: "postgres"}, volume.ErrNotFound, []string{"with UID " + first.UID + "x"}},
		"ended":                {hotplug.Pod{Namespace: "default", Name: "ended"}, volume.ErrNotFound, []string{"default/ended"}},
		"two pods of a name":   {hotplug.Pod{Namespace: "default", Name: "twin", Container: "main"}, volume.ErrInvalid, []string{"the UID of the pod"}},
		"the sandbox, by name": {hotplug.Pod{Namespace: "default", Name: "db-0", Container: "POD"}, volume.ErrNotFound, []string{"no container POD runs"}},
	} {
		t.Run(name, func(t *testing.T) {
			wanted := request(disk, "", "", "")
			wanted.Target.Pod = &test.target
			_, err := node.Attach(ctx, wanted)
			for _, words := range test.says {
				wantErrorOf(t, err, test.want, words)
			}
			node.wantForgotten(t)
		})
	}
	for _, container := range containers {
		container.wantNone(t, "/dev/xvdb", disk)
	}
	wanted := request(disk, "default", "twin", "")
	wanted.Target.Pod.UID = twins[1]
	attached, err := node.Attach(ctx, wanted)
	if err != nil || attached.Target.Pod.UID != twins[1] {
		t.Errorf("of two pods of a name, by UID: %+v, %v", attached, err)
	}
}

// Without asking the runtime, a container is found by its ID, or as docker ps
// prints that.
func TestCRIContainerByID(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	_, containers := node.run(t, pod("default", "db-0"), "postgres")
	postgres := containers[0]
	for _, id := range []string{postgres.ID, postgres.ID[:12]} {
		attached, err := node.Attach(ctx, hotplug.Request{Device: disk.Path, Path: "/dev/xvdb", Target: hotplug.Target{Container: id}})
		rig.Must(t, err)
		if attached.ContainerID != postgres.ID {
			t.Errorf("by %s: attached to %s", id, attached.ContainerID)
		}
		postgres.wantDevice(t, "/dev/xvdb", disk)
		_, err = node.Detach(ctx, attached.ID)
		rig.Must(t, err)
		postgres.wantNone(t, "/dev/xvdb", disk)
	}
	unknown := strings.Repeat("0", len(postgres.ID))
	_, err := node.Attach(ctx, hotplug.Request{Device: disk.Path, Path: "/dev/xvdb", Target: hotplug.Target{Container: unknown}})
	wantErrorOf(t, err, volume.ErrNotFound, unknown)
}
