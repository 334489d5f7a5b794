package hotplug

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The first process of a container that is being started has the container's cgroup and
// a mount namespace of its own, but the host's root still: a node would be made there.
func TestAttackStartingContainer(t *testing.T) {
	node, disk := newNode(t), rig.NewDisk(t, rig.MiB)
	hierarchies, err := devcgroup.FindHierarchies(t.Name())
	rig.Must(t, err)
	starting := exec.CommandContext(t.Context(), "unshare", "--mount", "sleep", "infinity")
	rig.Must(t, starting.Start())
	t.Cleanup(func() {
		starting.Process.Kill() //nolint:errcheck // It may have ended.
		starting.Wait()         //nolint:errcheck // It was killed.
	})
	pid := starting.Process.Pid
	cgroup := filepath.Join(hierarchies.Devices, fmt.Sprintf("rawblock-test-%d", pid))
	rig.Must(t, os.Mkdir(cgroup, 0o755))
	t.Cleanup(func() {
		rig.Eventually(t, func() error { return os.Remove(cgroup) })
	})
	rig.Must(t, os.WriteFile(filepath.Join(cgroup, "devices.deny"), []byte("a"), 0))
	rig.Must(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0))
	rig.Eventually(t, func() error {
		own, err := os.Readlink("/proc/self/ns/mnt")
		if err != nil {
			return err
		}
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err == nil && its == own {
			err = errors.New("it has the mount namespace of the test still")
		}
		return err
	})
	path := filepath.Join(t.TempDir(), "xvdb")
	_, err = node.Attach(rig.Context(t), hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: path})
	if !errors.Is(err, volume.ErrAborted) {
		t.Errorf("got %v, want that it may be tried again", err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Errorf("the node %s was made on the host", path)
	}
	if all, err := node.List(rig.Context(t)); err != nil || len(all) != 0 {
		t.Errorf("it is listed: %v (%v)", all, err)
	}
}

// A descriptor of any process on a filesystem that never answers, or that was shut down,
// keeps nobody's device from being taken away.
func TestAttackDeadFilesystem(t *testing.T) {
	for name, die := range map[string]func(t *testing.T) *os.File{"hung": hungFUSE, "shut down": deadXFS} {
		t.Run(name, func(t *testing.T) {
			node, disk := newNode(t), rig.NewDisk(t, rig.MiB)
			container := startContainer(t, oci.Config{})
			attached, err := node.Attach(rig.Context(t), container.request(disk, "/dev/xvdb"))
			rig.Must(t, err)
			attacker := exec.CommandContext(t.Context(), "sleep", "infinity")
			attacker.ExtraFiles = []*os.File{die(t)}
			rig.Must(t, attacker.Start())
			defer attacker.Wait()         //nolint:errcheck // It was killed.
			defer attacker.Process.Kill() //nolint:errcheck // It may have ended.
			ended := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			go func() {
				_, err := node.Detach(ctx, attached.ID)
				ended <- err
			}()
			select {
			case err := <-ended:
				rig.Must(t, err)
			case <-ctx.Done():
				t.Fatal("the detach waits for the filesystem")
			}
		})
	}
}

// hungFUSE mounts a filesystem whose program never answers, and opens its root.
func hungFUSE(t *testing.T) *os.File {
	t.Helper()
	program, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	rig.Must(t, err)
	folder := t.TempDir()
	rig.Must(t, unix.Mount("rawblock-test", folder, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", program.Fd())))
	t.Cleanup(func() {
		program.Close() // All who wait get an error.
		rig.Must(t, unix.Unmount(folder, unix.MNT_DETACH))
	})
	return open(t, folder, unix.O_PATH)
}

// deadXFS mounts a filesystem, opens a file, and shuts the filesystem down.
func deadXFS(t *testing.T) *os.File {
	t.Helper()
	// Not the rig's own mount, which is looked at when it is taken down.
	disk, folder := rig.NewDisk(t, 320*rig.MiB), t.TempDir()
	if output, err := exec.CommandContext(t.Context(), "mkfs.xfs", "-q", disk.Path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs: %v: %s", err, output)
	}
	rig.Must(t, unix.Mount(disk.Path, folder, "xfs", 0, ""))
	t.Cleanup(func() { rig.Must(t, unix.Unmount(folder, unix.MNT_DETACH)) })
	rig.Must(t, os.WriteFile(folder+"/file", []byte("x"), 0o600))
	file := open(t, folder+"/file", unix.O_RDONLY)
	root := open(t, folder, unix.O_RDONLY)
	// XFS_IOC_GOINGDOWN with XFS_FSOP_GOING_FLAGS_NOLOGFLUSH (fs/xfs/libxfs/xfs_fs.h).
	const goingDown, noLogFlush = 0x8004587d, 2
	rig.Must(t, unix.IoctlSetPointerInt(int(root.Fd()), goingDown, noLogFlush))
	return file
}

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, flags, 0)
	rig.Must(t, err)
	t.Cleanup(func() { file.Close() })
	return file
}

// Programs in a container that have made cgroups of their own are given the device too,
// and lose it too.
func TestAttachReachesCgroupsBelow(t *testing.T) {
	node, disk := newNode(t), rig.NewDisk(t, rig.MiB)
	rig.WriteAt(t, disk.Path, "secret", 0)
	container := startContainer(t, oci.Config{})
	hierarchies, err := devcgroup.FindHierarchies(t.Name())
	rig.Must(t, err)
	cgroup := filepath.Join(hierarchies.Devices, container.Name)
	below, narrow := filepath.Join(cgroup, "below"), filepath.Join(cgroup, "narrow")
	for _, path := range []string{below, narrow} {
		rig.Must(t, os.Mkdir(path, 0o755))
		defer os.Remove(path)
	}
	rig.Must(t, os.WriteFile(filepath.Join(narrow, "devices.deny"), []byte("a"), 0))
	attached, err := node.Attach(rig.Context(t), container.request(disk, "/dev/xvdb"))
	rig.Must(t, err)
	rule := fmt.Sprintf("b %s rw", disk.Number())
	has := func(path string) bool {
		list, err := os.ReadFile(filepath.Join(path, "devices.list"))
		rig.Must(t, err)
		return strings.Contains(string(list), rule)
	}
	if !has(below) {
		t.Error("a cgroup below the container's does not allow the device")
	}
	if has(narrow) {
		t.Error("a cgroup with narrower rules of its own allows the device")
	}
	_, err = node.Detach(rig.Context(t), attached.ID)
	rig.Must(t, err)
	if has(below) {
		t.Error("a cgroup below the container's allows the device after it was detached")
	}
}
