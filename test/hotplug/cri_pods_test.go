package hotplug

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/test/containerd"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// asking is a pod that asks, by its annotation, that its volume be attached to a
// container of another pod.
type asking struct {
	containerd.Pod
	*rig.Volume
	target string
}

// newAsking makes the volume of such a pod and gives it to the pod, as kubelet does
// before it starts the sandbox.
func (c *cluster) newAsking(t testing.TB, disk *rig.Disk, annotation string, readOnly bool) *asking {
	t.Helper()
	one := &asking{Pod: pod("default", "disk-for-db"), Volume: c.plugin.NewVolume(t, "disk", disk.Path)}
	one.Annotations = map[string]string{hotplug.Annotation: annotation}
	one.target = one.Target(t, one.UID)
	rig.Must(t, one.Stage(rig.Context(t)))
	publish := one.Publish
	if readOnly {
		publish = one.PublishReadOnly
	}
	rig.Must(t, publish(rig.Context(t), one.target))
	return one
}

// start starts the pod, whose container does nothing.
func (c *cluster) start(t testing.TB, one *asking) *containerd.Sandbox {
	t.Helper()
	sandbox, _ := c.run(t, one.Pod, "pause")
	return sandbox
}

// takeDown gives up the volume, as kubelet does after it stopped the sandbox.
func (a *asking) takeDown(t testing.TB) {
	t.Helper()
	rig.Must(t, a.Unpublish(rig.Context(t), a.target))
	rig.Must(t, a.Unstage(rig.Context(t)))
}

func TestCRIAttachmentPod(t *testing.T) {
	for name, test := range map[string]struct {
		suffix                    string
		publishReadOnly, readOnly bool
	}{
		"writing":                {"", false, false},
		"read-only by the pod":   {":ro", false, true},
		"read-only by its claim": {"", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
			ctx := rig.Context(t)
			_, containers := node.run(t, pod("default", "db-0"), "postgres", "backup")
			_, others := node.run(t, pod("other", "db-0"), "postgres")
			rig.Must(t, node.Reconcile(ctx))
			one := node.newAsking(t, disk, "db-0/postgres:/dev/xvdb"+test.suffix, test.publishReadOnly)
			rig.Must(t, node.Reconcile(ctx))
			node.wantForgotten(t) // It does not run yet.
			sandbox := node.start(t, one)

			for range 2 {
				attached := node.wantState(t, hotplug.Attached, "")
				if attached.Owner != one.UID || attached.Volume != one.ID || attached.ContainerID != containers[0].ID || attached.ReadOnly != test.readOnly {
					t.Errorf("attached: %+v", attached)
				}
				if test.readOnly {
					containers[0].wantReadOnly(t, "/dev/xvdb", disk)
				} else {
					containers[0].wantDevice(t, "/dev/xvdb", disk)
				}
			}
			for _, other := range []*inPod{containers[1], others[0]} {
				other.wantNone(t, "/dev/xvdb", disk)
			}

			rig.Must(t, sandbox.Delete(ctx))
			node.wantState(t, hotplug.Attached, "") // Until kubelet says so.
			one.takeDown(t)
			node.wantForgotten(t)
			containers[0].wantNone(t, "/dev/xvdb", disk)
		})
	}
}

// What its annotation asks for cannot be had, now or ever.
func TestCRIAttachmentPodRefused(t *testing.T) {
	for name, test := range map[string]struct{ annotation, reason string }{
		"malformed":            {"db-0:/dev/xvdb", `the annotation hotplug.rawblock.dev/target is "db-0:/dev/xvdb"; expected POD/CONTAINER:PATH`},
		"names a namespace":    {"default/db-0/postgres:/dev/xvdb", "expected POD/CONTAINER:PATH"},
		"malformed path":       {"db-0/postgres:dev/xvdb", `path is "dev/xvdb"; expected a plain absolute path`},
		"no such directory":    {"db-0/postgres:/data/xvdb", "the container has no directory /data"},
		"something else there": {"db-0/postgres:/bin/busybox", "there is a regular file at /bin/busybox in the container already"},
	} {
		t.Run(name, func(t *testing.T) {
			disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
			_, containers := node.run(t, pod("default", "db-0"), "postgres")
			one := node.newAsking(t, disk, test.annotation, false)
			sandbox := node.start(t, one)
			for range 2 {
				refused := node.wantState(t, hotplug.Refused, test.reason)
				if refused.Owner != one.UID || refused.Volume != one.ID {
					t.Errorf("refused: %+v", refused)
				}
			}
			containers[0].wantNone(t, "/dev/xvdb", disk)
			rig.Must(t, sandbox.Delete(rig.Context(t)))
			one.takeDown(t)
			node.wantForgotten(t)
		})
	}
}

// The annotation is nobody's business where no volume of this driver is published.
func TestCRIAttachmentPodOfOthers(t *testing.T) {
	node := newCluster(t)
	other := pod("default", "disk-for-db")
	other.Annotations = map[string]string{hotplug.Annotation: "db-0/postgres:/dev/xvdb"}
	node.run(t, other, "pause")
	rig.Must(t, node.Reconcile(rig.Context(t)))
	node.wantForgotten(t)
}

// The target may come later, and is never that of another namespace.
func TestCRIAttachmentPodWaits(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	_, others := node.run(t, pod("other", "db-0"), "postgres")
	one := node.newAsking(t, disk, "db-0/postgres:/dev/xvdb", false)
	asked := node.start(t, one)
	for range 2 {
		node.wantState(t, hotplug.Waiting, "no container of pod default/db-0/postgres runs on this node")
	}
	sandbox, _ := node.run(t, pod("default", "db-0"))
	node.wantState(t, hotplug.Waiting, "no container of pod default/db-0/postgres runs on this node")
	postgres := startIn(t, sandbox, "postgres")
	node.wantState(t, hotplug.Attached, "")
	postgres.wantDevice(t, "/dev/xvdb", disk)

	// It is restarted, and gets the device again.
	rig.Must(t, postgres.Delete(ctx))
	node.wantState(t, hotplug.Waiting, "no container of pod default/db-0/postgres")
	postgres = startIn(t, sandbox, "postgres")
	node.wantState(t, hotplug.Attached, "")
	postgres.wantDevice(t, "/dev/xvdb", disk)
	others[0].wantNone(t, "/dev/xvdb", disk)

	// It is deleted while the device is wanted, and nothing is in the way of the end.
	rig.Must(t, sandbox.Delete(ctx))
	node.wantState(t, hotplug.Waiting, "no container of pod default/db-0/postgres")
	rig.Must(t, asked.Delete(ctx))
	one.takeDown(t)
	node.wantForgotten(t)
}

// With the UID of the target, a pod that takes its name gets nothing.
func TestCRIAttachmentPodNamesUID(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	first, second := pod("default", "db-0"), pod("default", "db-0")
	_, ofFirst := node.run(t, first, "postgres")
	one := node.newAsking(t, disk, fmt.Sprintf("db-0/postgres@%s:/dev/xvdb", second.UID), false)
	node.start(t, one)
	node.wantState(t, hotplug.Waiting, "with UID "+second.UID)
	_, ofSecond := node.run(t, second, "postgres")
	node.wantState(t, hotplug.Attached, "")
	ofFirst[0].wantNone(t, "/dev/xvdb", disk)
	ofSecond[0].wantDevice(t, "/dev/xvdb", disk)
}

// Without, it is whatever pod has the name, as a StatefulSet's have it.
func TestCRIAttachmentPodFollowsName(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	first, ofFirst := node.run(t, pod("default", "db-0"), "postgres")
	one := node.newAsking(t, disk, "db-0/postgres:/dev/xvdb", false)
	node.start(t, one)
	node.wantState(t, hotplug.Attached, "")
	ofFirst[0].wantDevice(t, "/dev/xvdb", disk)
	rig.Must(t, first.Delete(ctx))
	node.wantState(t, hotplug.Waiting, "no container of pod default/db-0/postgres")
	_, ofSecond := node.run(t, pod("default", "db-0"), "postgres")
	node.wantState(t, hotplug.Attached, "")
	ofSecond[0].wantDevice(t, "/dev/xvdb", disk)
}

// A pod that asks has one volume: which one of two is meant, nobody knows.
func TestCRIAttachmentPodWithTwoVolumes(t *testing.T) {
	disk, other, node := rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	_, containers := node.run(t, pod("default", "db-0"), "postgres")
	one := node.newAsking(t, disk, "db-0/postgres:/dev/xvdb", false)
	second := node.plugin.NewVolume(t, "other", other.Path)
	rig.Must(t, second.Stage(ctx))
	rig.Must(t, second.Publish(ctx, second.Target(t, one.UID)))
	node.start(t, one)
	node.wantState(t, hotplug.Refused, "pod default/disk-for-db has 2 block volumes of this driver; an attachment pod has exactly one")
	containers[0].wantNone(t, "/dev/xvdb", disk)
	containers[0].wantNone(t, "/dev/xvdb", other)
}

// A volume is not taken from under the program that has it open, whatever happens
// to the pod that asked for it.
func TestCRIAttachmentPodHeld(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	_, containers := node.run(t, pod("default", "db-0"), "postgres")
	one := node.newAsking(t, disk, "db-0/postgres:/dev/xvdb", false)
	sandbox := node.start(t, one)
	node.wantState(t, hotplug.Attached, "")
	release := containers[0].hold(t, "/dev/xvdb")

	wantStatus(t, one.Unstage(ctx), codes.FailedPrecondition, "attached to pod default/db-0/postgres")
	rig.Must(t, sandbox.Delete(ctx))
	for range 2 {
		err := one.Unpublish(ctx, one.target)
		held := node.wantState(t, hotplug.Held, "(sleep)")
		if len(held.Holders) != 1 || held.Holders[0].Command != "sleep" {
			t.Fatalf("the holders are %+v", held.Holders)
		}
		holder := fmt.Sprintf("process %d (sleep)", held.Holders[0].PID)
		wantStatus(t, err, codes.FailedPrecondition, holder)
		wantStatus(t, one.Unstage(ctx), codes.FailedPrecondition, holder)
		containers[0].wantNone(t, "/dev/xvdb", disk)
	}
	release()
	one.takeDown(t)
	node.wantForgotten(t)
	rig.Must(t, node.Reconcile(ctx))
	node.wantForgotten(t)
}

// Kubelet starts a sandbox anew that has ended. The volume stays published, and
// what it is attached to has it all the time.
func TestCRIAttachmentPodRestarted(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	_, containers := node.run(t, pod("default", "db-0"), "postgres")
	one := node.newAsking(t, disk, "db-0/postgres:/dev/xvdb", false)
	sandbox := node.start(t, one)
	first := node.wantState(t, hotplug.Attached, "")
	release := containers[0].hold(t, "/dev/xvdb")
	defer release()

	rig.Must(t, sandbox.Stop(ctx))
	node.wantState(t, hotplug.Attached, "")
	again := node.start(t, one)
	node.wantState(t, hotplug.Attached, "")
	rig.Must(t, sandbox.Delete(ctx))
	if last := node.wantState(t, hotplug.Attached, ""); last.ID != first.ID || last.Since != first.Since || again.UID != sandbox.UID {
		t.Errorf("it was %+v and is %+v", first, last)
	}
	containers[0].wantDevice(t, "/dev/xvdb", disk)
}

func wantStatus(t testing.TB, err error, code codes.Code, words string) {
	t.Helper()
	wantErrorOf(t, err, err, words)
	if status.Code(err) != code {
		t.Errorf("got %v; want %s", err, code)
	}
}
