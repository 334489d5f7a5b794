package hotplug

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What the plugin is told of pods and containers is what kubelet made.
func TestCRIRuntime(t *testing.T) {
	started := startContainerd(t)
	client, err := cri.Dial(started.Socket)
	rig.Must(t, err)
	defer client.Close()
	ctx := rig.Context(t)
	wanted := pod("default", "db-0")
	wanted.Annotations = map[string]string{"example.org/a": "b"}
	sandbox, err := started.Run(ctx, wanted)
	rig.Must(t, err)
	container := startIn(t, sandbox, "postgres")

	for _, ready := range []bool{true, false} {
		pods, err := client.Pods(ctx)
		want := []cri.Pod{{Namespace: "default", Name: "db-0", UID: wanted.UID, Ready: ready, Annotations: wanted.Annotations}}
		if diff := cmp.Diff(want, pods); err != nil || diff != "" {
			t.Errorf("pods, ready %t: %v %s", ready, err, diff)
		}
		containers, err := client.Containers(ctx)
		running := []cri.Container{{ID: container.ID, Name: "postgres", PodNamespace: "default", PodName: "db-0", PodUID: wanted.UID}}
		if !ready {
			running = nil
		}
		if diff := cmp.Diff(running, containers); err != nil || diff != "" {
			t.Errorf("containers, running %t: %v %s", ready, err, diff)
		}
		pid, err := client.PID(ctx, container.ID)
		if ready {
			rig.Must(t, err)
			wantInit(t, pid, container)
			rig.Must(t, sandbox.Stop(ctx))
		} else {
			wantErrorOf(t, err, volume.ErrNotFound, "container "+container.ID+" does not run")
		}
	}
	rig.Must(t, sandbox.Delete(ctx))
	_, err = client.PID(ctx, container.ID)
	wantErrorOf(t, err, volume.ErrNotFound, "look at container "+container.ID)
}

// wantInit checks that a process is the first one of a container.
func wantInit(t testing.TB, pid int, container *inPod) {
	t.Helper()
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(cgroups), container.ID) {
		t.Errorf("process %d is in the cgroups %s, %v", pid, cgroups, err)
	}
}

// Events are of runtimes since Kubernetes 1.26. One that has none says so.
func TestCRIEvents(t *testing.T) {
	started := startContainerd(t)
	client, err := cri.Dial(started.Socket)
	rig.Must(t, err)
	defer client.Close()
	ctx, stop := context.WithCancel(rig.Context(t))
	defer stop()
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- client.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	version, err := started.Version(ctx)
	rig.Must(t, err)
	if strings.HasPrefix(version, "1.6.") {
		if err := <-ended; !errors.Is(err, cri.ErrUnsupported) {
			t.Errorf("got %v; want %v", err, cri.ErrUnsupported)
		}
		return
	}
	sandbox, err := started.Run(ctx, pod("default", "db-0"))
	rig.Must(t, err)
	for told := false; !told; {
		startIn(t, sandbox, "postgres") // Again, as it may not be watched yet.
		select {
		case <-changed:
			told = true
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ends with %v", err)
	}
}

// The daemon may be restarted under its containers. What is attached stays, and can
// be taken away meanwhile.
func TestCRIRuntimeRestarted(t *testing.T) {
	disk, lone, node := rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx := rig.Context(t)
	sandbox, containers := node.run(t, pod("default", "db-0"), "postgres", "backup")
	postgres, backup := containers[0], containers[1]
	one := node.newAsking(t, disk, "db-0/postgres:/dev/xvdb", false)
	asked := node.start(t, one)
	node.wantState(t, hotplug.Attached, "")
	_, err := node.Attach(ctx, request(lone, "default", "db-0", "backup"))
	rig.Must(t, err)

	rig.Must(t, node.containerd.Kill())
	wantErrorOf(t, node.Reconcile(ctx), volume.ErrPrecondition, "the container runtime at "+node.containerd.Socket+" does not answer")
	list, err := node.List(ctx)
	if err != nil || len(list) != 2 || list[0].State != hotplug.Attached || list[1].State != hotplug.Attached {
		t.Fatalf("without the runtime: %+v, %v", list, err)
	}
	_, err = node.Attach(ctx, request(disk, "default", "db-0", "backup"))
	wantErrorOf(t, err, volume.ErrPrecondition, "does not answer")
	if _, err := node.runtime.PID(ctx, postgres.ID); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("the process is asked for: %v", err)
	}

	rig.Must(t, node.containerd.Restart(ctx))
	node.reconcileSoon(t)
	postgres.wantDevice(t, "/dev/xvdb", disk)
	backup.wantDevice(t, "/dev/xvdb", lone)

	// The runtime is away again, and its answer is not needed to take away.
	rig.Must(t, node.containerd.Kill())
	one.takeDown(t)
	rig.Must(t, node.containerd.Restart(ctx))
	postgres.wantNone(t, "/dev/xvdb", disk)
	backup.wantDevice(t, "/dev/xvdb", lone)
	// The pod asks still, but has no volume any more.
	node.reconcileSoon(t)
	node.only(t)

	// Both can be asked for anew.
	rig.Must(t, asked.Delete(ctx))
	rig.Must(t, postgres.Delete(ctx))
	postgres = startIn(t, sandbox, "postgres")
	attached, err := node.Attach(ctx, request(disk, "default", "db-0", "postgres"))
	if err != nil || attached.ContainerID != postgres.ID {
		t.Errorf("attached: %+v, %v", attached, err)
	}
	postgres.wantDevice(t, "/dev/xvdb", disk)
}

// reconcileSoon reconciles once the connection to the runtime is there again.
func (c *cluster) reconcileSoon(t testing.TB) {
	t.Helper()
	for {
		err := c.Reconcile(rig.Context(t))
		if err == nil {
			return
		}
		if !errors.Is(err, volume.ErrPrecondition) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// All of it goes on by itself.
func TestCRIRunOverRestartOfRuntime(t *testing.T) {
	disk, node := rig.NewDisk(t, rig.MiB), newCluster(t)
	ctx, stop := context.WithCancel(rig.Context(t))
	sandbox, containers := node.run(t, pod("default", "db-0"), "postgres")
	one := node.newAsking(t, disk, "db-0/postgres:/dev/xvdb", false)
	node.start(t, one)
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()
	defer func() {
		stop()
		rig.Must(t, <-ended)
	}()
	node.awaitContainer(t, containers[0].ID)
	rig.Must(t, node.containerd.Kill())
	rig.Must(t, node.containerd.Restart(ctx))
	rig.Must(t, containers[0].Delete(ctx))
	postgres := startIn(t, sandbox, "postgres")
	node.awaitContainer(t, postgres.ID)
	postgres.wantDevice(t, "/dev/xvdb", disk)
}

// awaitContainer waits until what there is is attached to the container.
func (c *cluster) awaitContainer(t testing.TB, id string) {
	t.Helper()
	ctx := rig.Context(t)
	for {
		list, err := c.List(ctx)
		rig.Must(t, err)
		if len(list) == 1 && list[0].State == hotplug.Attached && list[0].ContainerID == id {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the attachments are %+v", list)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
