package attack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// patience is after how long a call is taken to hang.
const patience = time.Minute

// within fails the test where a call does not return.
func within[T any](t *testing.T, what string, call func() (T, error)) (T, error) {
	t.Helper()
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := call()
		done <- result{value, err}
	}()
	select {
	case got := <-done:
		return got.value, got.err
	case <-time.After(patience):
		t.Fatalf("%s hangs", what)
		panic("unreachable")
	}
}

// newXFS mounts a filesystem, and returns its directory.
func newXFS(t *testing.T) string {
	t.Helper()
	rig.RequireProgram(t, "mkfs.xfs")
	disk := rig.NewLoop(t, 320*rig.MiB, 512)
	output, err := exec.CommandContext(rig.Context(t), "mkfs.xfs", "-q", disk.Path).CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.xfs: %v: %s", err, output)
	}
	dir := t.TempDir()
	rig.Must(t, unix.Mount(disk.Path, dir, "xfs", 0, ""))
	t.Cleanup(func() { rig.Must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// shutDown has XFS refuse everything from now on, as it does by itself after errors of its
// disk (XFS_IOC_GOINGDOWN of fs/xfs/libxfs/xfs_fs.h).
func shutDown(t *testing.T, dir string) {
	t.Helper()
	const goingDown = 0x8004587d
	root, err := os.Open(dir)
	rig.Must(t, err)
	defer root.Close()
	rig.Must(t, unix.IoctlSetPointerInt(int(root.Fd()), goingDown, 2)) // XFS_FSOP_GOING_FLAGS_NOLOGFLUSH
}

// One process of the node has a file of a filesystem open that is dead, or whose server
// hangs. Nobody else is kept from attaching and detaching.
func TestAttackDescriptorOnDeadFilesystem(t *testing.T) {
	for name, kill := range map[string]func(t *testing.T, hold func(path string)){
		"XFS shut down": func(t *testing.T, hold func(string)) {
			dir := newXFS(t)
			rig.Must(t, os.WriteFile(dir+"/file", make([]byte, 4096), 0o600))
			hold(dir + "/file")
			shutDown(t, dir)
		},
		"FUSE server killed": func(t *testing.T, hold func(string)) {
			f := newFuse(t)
			hold(f.file)
			f.end()
		},
		"FUSE server hangs": func(t *testing.T, hold func(string)) {
			f := newFuse(t)
			hold(f.file)
			t.Cleanup(f.end) // A process that ends waits for the server.
			f.hang(t)
		},
		// The kernel lets nobody look into it meanwhile (exec_update_lock).
		"a program begins, and closes a file whose FUSE server hangs": func(t *testing.T, _ func(string)) {
			f := newFuse(t)
			begin := openToExecute(t, f.file)
			t.Cleanup(f.end)
			f.hang(t)
			begin()
			f.hear(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			manager, disk, container := newHotAttach(t), rig.NewDisk(t, rig.MiB), rig.NewContainer(t, oci.Config{})
			ctx := rig.Context(t)
			pid, err := container.PID(ctx)
			rig.Must(t, err)
			kill(t, func(path string) { holdOpen(t, path) })
			for range 2 {
				attached, err := within(t, "attach", func() (hotplug.Attachment, error) {
					return manager.Attach(ctx, hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb"})
				})
				rig.Must(t, err)
				_, err = within(t, "detach", func() (hotplug.Attachment, error) { return manager.Detach(ctx, attached.ID) })
				rig.Must(t, err)
			}
		})
	}
}

// holdOpen has a process hold a file open, for reading, until the test ends.
func holdOpen(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	file, err := os.Open(path)
	rig.Must(t, err)
	defer file.Close()
	holder := exec.CommandContext(context.WithoutCancel(t.Context()), "sleep", "infinity")
	holder.Stdin = file
	rig.Must(t, holder.Start())
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() }) // It may have been killed.
	return holder
}

// executorVariable has the test's program open the file of that name, and then execute
// another.
const executorVariable = "RAWBLOCK_TEST_EXECUTOR"

// openToExecute starts a process of another container, as its cgroup says, that has a file
// open, which it closes once begin has it execute another program.
func openToExecute(t *testing.T, path string) (begin func()) {
	t.Helper()
	cgroup := "/sys/fs/cgroup"
	if _, err := os.Stat(cgroup + "/cgroup.procs"); err != nil {
		cgroup += "/pids" // Of version 1.
	}
	cgroup += "/" + strings.Repeat("0a", 32)
	rig.Must(t, os.Mkdir(cgroup, 0o755))
	t.Cleanup(func() { rig.Must(t, os.Remove(cgroup)) })
	executor := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	executor.Env = append(os.Environ(), executorVariable+"="+path)
	orders, err := executor.StdinPipe()
	rig.Must(t, err)
	ready, err := executor.StdoutPipe()
	rig.Must(t, err)
	rig.Must(t, executor.Start())
	t.Cleanup(func() { executor.Process.Kill(); executor.Wait() }) // It was killed.
	_, err = ready.Read(make([]byte, 1))
	rig.Must(t, err)
	rig.Must(t, os.WriteFile(cgroup+"/cgroup.procs", []byte(strconv.Itoa(executor.Process.Pid)), 0o600))
	return func() { rig.Must(t, orders.Close()) }
}

func executeAfterOpening(path string) int {
	file, err := os.Open(path)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write([]byte{0})
	os.Stdin.Read(make([]byte, 1)) // Until it is closed.
	err = syscall.Exec("/bin/sleep", []string{"sleep", "infinity"}, nil)
	runtime.KeepAlive(file)
	panic(err)
}

// Who has the device open by a node of his own on a filesystem that he then kills still has
// it: it is not released.
func TestAttackHeldFromDeadFilesystem(t *testing.T) {
	manager, disk, container := newHotAttach(t), rig.NewDisk(t, rig.MiB), rig.NewContainer(t, oci.Config{})
	ctx, dir := rig.Context(t), newXFS(t)
	pid, err := container.PID(ctx)
	rig.Must(t, err)
	attached, err := manager.Attach(ctx, hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb"})
	rig.Must(t, err)
	node, number := filepath.Join(dir, "node"), disk.Number()
	rig.Must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(number.Major, number.Minor))))
	holder := holdOpen(t, node)
	shutDown(t, dir)
	if _, err = manager.Detach(ctx, attached.ID); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("a device that is held is released: %v", err)
	}
	rig.Must(t, holder.Process.Kill())
	holder.Wait() // It was killed.
	if _, err = manager.Detach(ctx, attached.ID); err != nil && !errors.Is(err, volume.ErrNotFound) {
		t.Error(err)
	}
}

// A container asks for its device in a directory whose filesystem never answers. That keeps
// no other container waiting.
func TestAttackHungDirectory(t *testing.T) {
	manager, disk, other := newHotAttach(t), rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB)
	f := newFuse(t)
	container, victim := rig.NewContainer(t, oci.Config{Binds: []string{f.dir}}), rig.NewContainer(t, oci.Config{})
	ctx := rig.Context(t)
	pid, err := container.PID(ctx)
	rig.Must(t, err)
	victimPID, err := victim.PID(ctx)
	rig.Must(t, err)
	f.hang(t)
	hung := make(chan error, 3)
	for i := range cap(hung) {
		go func() {
			_, err := manager.Attach(ctx, hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: fmt.Sprintf("%s/sub/xvd%d", f.dir, i)})
			hung <- err
		}()
	}
	for range 2 {
		attached, err := within(t, "attach", func() (hotplug.Attachment, error) {
			return manager.Attach(ctx, hotplug.Request{Device: other.Path, Target: hotplug.Target{PID: victimPID}, Path: "/dev/xvdb"})
		})
		rig.Must(t, err)
		_, err = within(t, "detach", func() (hotplug.Attachment, error) { return manager.Detach(ctx, attached.ID) })
		rig.Must(t, err)
	}
	for range cap(hung) {
		err, _ := within(t, "the attachment to a directory that hangs", func() (error, error) { return <-hung, nil })
		if err == nil {
			t.Error("something was attached in a directory that does not answer")
		}
	}
}
