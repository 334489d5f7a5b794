package lvm_test

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// namespaceVariable has the pools of this binary run the programs of another mount
// namespace than its own.
const namespaceVariable = "RAWBLOCK_HOST_NAMESPACE"

// groupVariable is the volume group of TestInContainer.
const groupVariable = "RAWBLOCK_VOLUME_GROUP"

// A plugin in a container has a mount and an IPC namespace of its own, and no lvm: it
// runs the host's, whose udev it waits for.
func TestFromContainer(t *testing.T) {
	m := newThin(t, 512, 32*rig.MiB)
	child := exec.CommandContext(rig.Context(t), os.Args[0], "-test.run=^TestInContainer$", "-test.v")
	child.Env = append(os.Environ(), namespaceVariable+"=/proc/1/ns/mnt", groupVariable+"="+m.group)
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC}
	output, err := child.CombinedOutput()
	t.Logf("%s", output)
	rig.Must(t, err)
}

// TestInContainer is the child's part of it.
func TestInContainer(t *testing.T) {
	if os.Getenv(namespaceVariable) == "" {
		return // It is run by TestFromContainer.
	}
	m := &media{group: os.Getenv(groupVariable), thinPool: "tp-0"}
	// From here on this namespace has no lvm.
	rig.Must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	path, err := exec.LookPath("lvm")
	rig.Must(t, err)
	rig.Must(t, unix.Mount("/dev/null", path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	pool := m.open(t)
	defer pool.Close()
	create(t, pool, "data", size)
	data := node(t, pool, "data")
	rig.Must(t, fill(data, 'd', 0, size))
	wantOnly(t, data, 'd', 0, size)
	rig.Must(t, pool.Deactivate(rig.Context(t), "data"))
	rig.Must(t, pool.Delete(rig.Context(t), "data"))
	if pool.Status().Problem != nil {
		t.Error(pool.Status().Problem)
	}
}
