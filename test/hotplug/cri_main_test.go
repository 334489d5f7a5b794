package hotplug

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/test/containerd"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// cluster is a node with a container runtime, and the plugin as it runs there: the
// CSI socket and the manager have the same volumes.
type cluster struct {
	*hotplug.Manager
	plugin *rig.Plugin
	// containerd is what kubelet tells to run pods, runtime how the plugin sees it.
	containerd *containerd.Runtime
	runtime    *cri.Client
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{containerd: startContainerd(t)}
	var err error
	c.runtime, err = cri.Dial(c.containerd.Socket)
	rig.Must(t, err)
	t.Cleanup(func() { c.runtime.Close() })
	hierarchies, err := devcgroup.FindHierarchies("node-of-" + t.Name())
	rig.Must(t, err)
	stateDir := rig.StateDir(t)
	c.plugin = rig.NewPluginWith(t, func(options *driver.Options) {
		options.Inflight = &inflight.Names{}
		c.Manager, err = hotplug.New(hotplug.Options{
			StateDir: stateDir, Volumes: options.Publisher, Inflight: options.Inflight, Runtime: c.runtime,
			AttachmentPods: true, Hierarchies: hierarchies, Sysfs: options.Sysfs,
		})
		rig.Must(t, err)
		t.Cleanup(c.Close)
		options.Attachments = c.Manager
	})
	return c
}

// startContainerd starts a containerd of the test's own.
func startContainerd(t testing.TB) *containerd.Runtime {
	t.Helper()
	rig.RequireContainers(t)
	rig.RequireProgram(t, "containerd")
	rig.RequireProgram(t, "ctr")
	started, err := containerd.Start(rig.Context(t), containerd.Config{Dir: t.TempDir(), Prefix: "rawblock-test"})
	rig.Must(t, err)
	t.Cleanup(func() {
		// The context of the test has ended by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := started.Delete(ctx); err != nil {
			t.Error(err)
		}
	})
	return started
}

// pod is a pod of the namespace and name, with a UID of its own.
func pod(namespace, name string) containerd.Pod {
	return containerd.Pod{Namespace: namespace, Name: name, UID: strings.ToLower(rand.Text())}
}

// run starts a pod with containers of the names.
func (c *cluster) run(t testing.TB, pod containerd.Pod, names ...string) (*containerd.Sandbox, []*inPod) {
	t.Helper()
	sandbox, err := c.containerd.Run(rig.Context(t), pod)
	rig.Must(t, err)
	var started []*inPod
	for _, name := range names {
		started = append(started, startIn(t, sandbox, name))
	}
	return sandbox, started
}

// inPod is a container of a pod.
type inPod struct{ *containerd.Container }

func startIn(t testing.TB, sandbox *containerd.Sandbox, name string) *inPod {
	t.Helper()
	container, err := sandbox.Start(rig.Context(t), name)
	rig.Must(t, err)
	return &inPod{container}
}

// wantDevice checks that the container reads and writes the disk at a path.
func (c *inPod) wantDevice(t testing.TB, path string, disk *rig.Disk) {
	t.Helper()
	text := "from " + c.ID[:12]
	if said, err := c.Exec(rig.Context(t), "sh", "-c", fmt.Sprintf("echo -n %q | dd of=%s conv=fsync,notrunc 2>/dev/null && head -c %d %[2]s", text, path, len(text))); err != nil || said != text {
		t.Errorf("the container reads %q, %v", said, err)
	}
	if got := rig.ReadAt(t, disk.Backing, len(text), 0); got != text {
		t.Errorf("on the disk there is %q, want %q", got, text)
	}
}

// wantReadOnly checks that the container reads the disk at a path, and cannot
// write to it.
func (c *inPod) wantReadOnly(t testing.TB, path string, disk *rig.Disk) {
	t.Helper()
	const text = "from the host"
	rig.WriteAt(t, disk.Path, text, 0)
	if got, err := c.Exec(rig.Context(t), "head", "-c", fmt.Sprint(len(text)), path); err != nil || got != text {
		t.Errorf("the container reads %q, %v", got, err)
	}
	_, err := c.Exec(rig.Context(t), "dd", "if=/dev/zero", "of="+path, "count=1", "conv=fsync,notrunc")
	wantRefused(t, err)
}

// wantNone checks that the container has nothing at the path, and cannot open the
// disk by a node of its own either.
func (c *inPod) wantNone(t testing.TB, path string, disk *rig.Disk) {
	t.Helper()
	if said, err := c.Exec(rig.Context(t), "stat", path); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("%s in the container: %s, %v", path, said, err)
	}
	_, err := c.Exec(rig.Context(t), "sh", "-c", fmt.Sprintf("own=/own-%[2]d; [ -b $own ] || mknod $own b %[1]d %[2]d; head -c 1 $own", disk.Number().Major, disk.Number().Minor))
	wantRefused(t, err)
}

// hold has a process of the container hold the device at a path, until release is
// called.
func (c *inPod) hold(t testing.TB, path string) (release func()) {
	t.Helper()
	pid, err := c.Exec(rig.Context(t), "sh", "-c", "sleep infinity <"+path+" >/dev/null 2>&1 & echo $!")
	rig.Must(t, err)
	return func() {
		_, err := c.Exec(rig.Context(t), "kill", "-9", pid)
		rig.Must(t, err)
	}
}

// request asks for the disk to be attached to a container of a pod.
func request(disk *rig.Disk, namespace, name, container string) hotplug.Request {
	return hotplug.Request{
		Device: disk.Path, Path: "/dev/xvdb",
		Target: hotplug.Target{Pod: &hotplug.Pod{Namespace: namespace, Name: name, Container: container}},
	}
}

// only returns the only attachment that there is.
func (c *cluster) only(t testing.TB) hotplug.Attachment {
	t.Helper()
	list, err := c.List(rig.Context(t))
	if err != nil || len(list) != 1 {
		t.Fatalf("the attachments are %+v, %v; want one", list, err)
	}
	return list[0]
}

// wantState reconciles and checks what becomes of the only attachment.
func (c *cluster) wantState(t testing.TB, state hotplug.State, reason string) hotplug.Attachment {
	t.Helper()
	rig.Must(t, c.Reconcile(rig.Context(t)))
	one := c.only(t)
	if one.State != state || !strings.Contains(one.Reason, reason) {
		t.Errorf("the attachment is %s (%s), want %s (%s)", one.State, one.Reason, state, reason)
	}
	return one
}

// wantForgotten checks that there is no attachment.
func (c *cluster) wantForgotten(t testing.TB) {
	t.Helper()
	if list, err := c.List(rig.Context(t)); err != nil || len(list) > 0 {
		t.Errorf("there are attachments left: %+v, %v", list, err)
	}
}
