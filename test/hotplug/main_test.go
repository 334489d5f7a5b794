// Package hotplug tests hot attach on running containers: what a container can
// open before, while and after a device is attached to it, whatever the container
// does to be given more, and whoever dies on the way.
package hotplug

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !machine.Inside() {
		leaveOut("^TestVM")
	}
	rig.Main(m)
}

// leaveOut has no test run that a pattern matches: those with disks of a guest machine,
// which has this package run whole or in part (test/vm/hotplug_test.go).
func leaveOut(pattern string) {
	skip := flag.Lookup("test.skip").Value
	if before := skip.String(); before != "" {
		pattern = before + "|" + pattern
	}
	if err := skip.Set(pattern); err != nil {
		panic(err) // It is a string, which takes anything.
	}
}

// node is a node with its manager, as the plugin has it.
type node struct {
	*hotplug.Manager
	publisher *publish.Publisher
	inflight  *inflight.Names
	name      string
	stateDir  string
}

func newNode(t testing.TB) *node {
	t.Helper()
	return newNodeNamed(t, t.Name())
}

func newNodeNamed(t testing.TB, name string) *node {
	t.Helper()
	return (&node{name: name, stateDir: rig.StateDir(t)}).restart(t)
}

// restart returns the node as a plugin has it that was started again.
func (n *node) restart(t testing.TB) *node {
	t.Helper()
	sysfs := blockdev.NewSysfs("/sys")
	publisher, err := publish.New(n.stateDir, sysfs)
	rig.Must(t, err)
	hierarchies, err := devcgroup.FindHierarchies(n.name)
	rig.Must(t, err)
	calls := &inflight.Names{}
	manager, err := hotplug.New(hotplug.Options{StateDir: n.stateDir, Volumes: publisher, Inflight: calls, Hierarchies: hierarchies, Sysfs: sysfs})
	rig.Must(t, err)
	t.Cleanup(manager.Close)
	return &node{manager, publisher, calls, n.name, n.stateDir}
}

// container is a running container, and the number of its first process.
type container struct {
	*rig.Container
	pid int
}

func startContainer(t testing.TB, config oci.Config) *container {
	t.Helper()
	config.Dir = t.TempDir()
	if config.UserNamespace {
		letThrough(t, config.Dir)
	}
	started := rig.NewContainer(t, config)
	pid, err := started.PID(rig.Context(t))
	rig.Must(t, err)
	return &container{started, pid}
}

// letThrough lets users other than root reach a temporary directory.
func letThrough(t testing.TB, path string) {
	t.Helper()
	for ; path != filepath.Dir(os.TempDir()) && path != "/"; path = filepath.Dir(path) {
		rig.Must(t, os.Chmod(path, 0o755))
	}
}

// request asks for the disk to be attached to the container.
func (c *container) request(disk *rig.Disk, path string) hotplug.Request {
	return hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: c.pid}, Path: path}
}

// read reads the beginning of a device in the container.
func (c *container) read(t testing.TB, path string, size int) (string, error) {
	t.Helper()
	return c.Exec(rig.Context(t), "head", "-c", fmt.Sprint(size), path)
}

// write writes text to the beginning of a device in the container, and waits until
// it is on the disk.
func (c *container) write(t testing.TB, path, text string) error {
	t.Helper()
	_, err := c.Exec(rig.Context(t), "sh", "-c", fmt.Sprintf("echo -n %q | dd of=%s conv=fsync,notrunc", text, path))
	return err
}

// wantRefused checks that the device cgroup refused to have a device opened.
func wantRefused(t testing.TB, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "Operation not permitted") {
		t.Errorf("got %v; want that it is not permitted", err)
	}
}

// wantBasics checks that the container can use the devices that every container has.
func (c *container) wantBasics(t testing.TB) {
	t.Helper()
	c.Run(t, "sh", "-c", "echo x >/dev/null && head -c 1 /dev/zero >/dev/null")
}

// wantNothing checks that there is nothing at a path in the container.
func (c *container) wantNothing(t testing.TB, path string) {
	t.Helper()
	if said, err := c.Exec(rig.Context(t), "stat", path); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("%s in the container: %s, %v", path, said, err)
	}
}

// ownNode makes a node for the disk from inside, as CAP_MKNOD lets a container do.
func (c *container) ownNode(t testing.TB, disk *rig.Disk) string {
	t.Helper()
	const path = "/dev/own"
	number := disk.Number()
	c.Run(t, "mknod", path, "b", fmt.Sprint(number.Major), fmt.Sprint(number.Minor))
	return path
}

// version names a version of cgroups.
func version(v2 bool) string {
	if v2 {
		return "v2"
	}
	return "v1"
}

// stage stages the disk as a volume, as the driver does.
func (n *node) stage(t testing.TB, volumeID string, disk *rig.Disk) error {
	t.Helper()
	device, err := blockdev.Open(disk.Path, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	defer device.Close()
	return n.publisher.Stage(volumeID, device, volume.SingleNodeWriter)
}
