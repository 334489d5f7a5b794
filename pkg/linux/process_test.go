package linux_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// start starts a process that does nothing, in new namespaces where flags say so.
func start(t *testing.T, attributes *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	command := exec.CommandContext(rig.Context(t), "sleep", "infinity")
	command.SysProcAttr = attributes
	rig.Must(t, command.Start())
	t.Cleanup(func() {
		command.Process.Kill() // It may have ended already.
		command.Wait()
	})
	return command
}

func hold(t *testing.T, pid int) *linux.Process {
	t.Helper()
	process, err := linux.OpenProcess(pid)
	rig.Must(t, err)
	t.Cleanup(process.Close)
	return process
}

func ended(t *testing.T, process *linux.Process) bool {
	t.Helper()
	ended, err := process.Ended()
	rig.Must(t, err)
	return ended
}

// A process that has ended and was not waited for yet looks alive in every other
// way.
func TestEnded(t *testing.T) {
	command := start(t, nil)
	process := hold(t, command.Process.Pid)
	if process.PID() != command.Process.Pid || ended(t, process) {
		t.Errorf("process %d is said to be %d, ended: %t", command.Process.Pid, process.PID(), ended(t, process))
	}
	rig.Must(t, command.Process.Kill())
	// Until it is a zombie.
	rig.Must(t, unix.Waitid(unix.P_PID, command.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
	if !ended(t, process) {
		t.Error("a process that was killed is said to run")
	}
	rig.Must(t, unix.PidfdSendSignal(int(process.Fd()), 0, nil, 0))
	command.Wait()
	if !ended(t, process) {
		t.Error("a process that was waited for is said to run")
	}
	if _, err := linux.OpenProcess(command.Process.Pid); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("holding a process that is not there: %v", err)
	}
	if err := process.UnmountTree(openDir(t, "/"), "x"); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("entering a process that is not there: %v", err)
	}
}

// Whatever lies below the root, no link leads out of it, or anywhere.
func TestOpenDirBelow(t *testing.T) {
	root := t.TempDir()
	rig.Must(t, os.MkdirAll(filepath.Join(root, "dev/disk"), 0o755))
	rig.Must(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))
	for name, target := range map[string]string{
		"absolute": "/etc", "relative": "../../../etc", "inside": "dev", "magic": "/proc/self/root", "dev/link": "disk",
	} {
		rig.Must(t, os.Symlink(target, filepath.Join(root, name)))
	}
	handle := openDir(t, root)
	for path, want := range map[string]error{
		"/dev": nil, "/dev/": nil, "/dev/disk": nil, "/": nil, "dev": nil,
		"/../../dev": nil, // As in a process whose root this is.
		"/absolute":  syscall.ELOOP, "/relative": syscall.ELOOP, "/inside": syscall.ELOOP, "/magic/etc": syscall.ELOOP, "/dev/link/": syscall.ELOOP,
		"/missing": syscall.ENOENT, "/file": syscall.ENOTDIR, "/../etc": syscall.ENOENT,
	} {
		dir, err := linux.OpenDirBelow(handle, path)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if err == nil {
			dir.Close()
		}
	}
}

func TestMakeBlockNode(t *testing.T) {
	rig.RequireRoot(t)
	dir, number := openDir(t, t.TempDir()), linux.DeviceNumber{Major: 259, Minor: 70000}
	rig.Must(t, linux.MakeBlockNode(dir, "node", number))
	node, err := linux.OpenPathAt(dir, "node")
	rig.Must(t, err)
	defer node.Close()
	wantNode(t, dir.Name()+"/node", number, 0, 0, 0)

	// The handle counts, not the name.
	rig.Must(t, os.Rename(dir.Name()+"/node", dir.Name()+"/moved"))
	rig.Must(t, os.WriteFile(dir.Name()+"/node", nil, 0o600))
	rig.Must(t, linux.SetOwner(node, 1000, 2000, 0o640))
	wantNode(t, dir.Name()+"/moved", number, 1000, 2000, 0o640)
	if info, err := os.Stat(dir.Name() + "/node"); err != nil || info.Mode() != 0o600 {
		t.Errorf("what took its name is %v, %v", info, err)
	}
	if err := linux.MakeBlockNode(dir, "node", number); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("over a file: %v", err)
	}
}

func wantNode(t *testing.T, path string, number linux.DeviceNumber, uid, gid, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	rig.Must(t, unix.Lstat(path, &st))
	if st.Mode != unix.S_IFBLK|mode || st.Uid != uid || st.Gid != gid || st.Rdev != unix.Mkdev(number.Major, number.Minor) {
		t.Errorf("%s has mode %o, owner %d:%d, device %#x", path, st.Mode, st.Uid, st.Gid, st.Rdev)
	}
}

func TestFlagsOf(t *testing.T) {
	path := rig.StateDir(t)
	for flags, want := range map[uintptr]linux.MountFlags{
		0: {}, unix.MS_RDONLY: {ReadOnly: true}, unix.MS_NODEV: {NoDevices: true},
	} {
		rig.Must(t, unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""))
		got, err := linux.FlagsOf(openDir(t, path))
		if err != nil || got != want {
			t.Errorf("with %#x: %+v, %v", flags, got, err)
		}
	}
}

// In a process that has a user and a mount namespace of its own, and a filesystem
// that belongs to them, only a node that is mounted can be opened.
func TestMountTree(t *testing.T) {
	for name, make := range map[string]nodeTree{"as the kernel has it": linux.BlockNodeTree, "before Linux 6.15": linux.BlockNodeTreeOfMounted} {
		t.Run(name, func(t *testing.T) { testMountTree(t, make) })
	}
}

// mountsOfHost are the mount points, but for those that tests have, which run beside this one.
func mountsOfHost(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(rig.MountPoints(t), func(point string) bool { return strings.HasPrefix(point, os.TempDir()) })
}

// nodeTree makes a node that is mounted nowhere.
type nodeTree func(number linux.DeviceNumber, uid, gid, mode uint32) (*linux.File, error)

func testMountTree(t *testing.T, make nodeTree) {
	before := mountsOfHost(t)
	disk := rig.NewDisk(t, rig.MiB)
	const rootID = 200000
	command := start(t, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: rootID, Size: 1000}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: rootID, Size: 1000}},
	})
	process := hold(t, command.Process.Pid)
	enter := []string{"nsenter", "-t", strconv.Itoa(command.Process.Pid), "-U", "-m", "--"}
	run := func(args ...string) error {
		output, err := exec.CommandContext(rig.Context(t), enter[0], append(enter[1:], args...)...).CombinedOutput()
		if err != nil {
			t.Logf("%v: %v: %s", args, err, output)
		}
		return err
	}
	rig.Must(t, run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt"))
	root, err := process.OpenRoot()
	rig.Must(t, err)
	defer root.Close()
	dir, err := linux.OpenDirBelow(root, "/mnt")
	rig.Must(t, err)
	defer dir.Close()

	if err := linux.CreateFile(dir, "as-root"); !errors.Is(err, syscall.EOVERFLOW) {
		t.Errorf("a file of a user that the filesystem does not know: %v", err)
	}
	rig.Must(t, linux.CreateFileAs(dir, "node", rootID, rootID))
	if unix.Getuid() != 0 {
		t.Error("the whole process has become another user")
	}
	tree, err := make(disk.Number(), rootID, rootID, 0o660)
	rig.Must(t, err)
	defer tree.Close()
	if now := mountsOfHost(t); !slices.Equal(now, before) {
		t.Errorf("on the host there was mounted %q, and is %q", before, now)
	}
	file, err := linux.OpenPathAt(dir, "node")
	rig.Must(t, err)
	defer file.Close()
	rig.Must(t, process.MountTree(tree, file))
	info, err := linux.StatAt(dir, "node")
	if err != nil || !info.IsBlockDevice() || info.Device != disk.Number() || !info.MountRoot {
		t.Errorf("mounted: %+v, %v", info, err)
	}
	rig.Must(t, run("head", "-c", "1", "/mnt/node"))
	if _, err := os.Lstat("/mnt/node"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host sees it: %v", err)
	}

	rig.Must(t, process.UnmountTree(dir, "node"))
	if err := process.UnmountTree(dir, "node"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("unmounted twice: %v", err)
	}
	rig.Must(t, linux.RemoveFile(dir, "node"))
}

func TestCheckInspectable(t *testing.T) {
	rig.RequireRoot(t)
	other := start(t, nil).Process.Pid
	const none = 1 << 22 // More than there can be (proc_sys_kernel(5), pid_max).
	for _, pid := range []int{os.Getpid(), other, none} {
		if err := linux.CheckInspectable(pid); err != nil {
			t.Errorf("process %d: %v", pid, err)
		}
	}
	refused := make(chan error)
	go func() {
		runtime.LockOSThread() // And ends with the goroutine.
		dropCapability(unix.CAP_SYS_PTRACE)
		refused <- linux.CheckInspectable(other)
	}()
	if err := <-refused; !errors.Is(err, syscall.EPERM) {
		t.Errorf("a process with more capabilities: got %v, want EPERM", err)
	}
}

// dropCapability takes a capability from the calling thread.
func dropCapability(capability int) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		panic(err)
	}
	for _, set := range []*uint32{&data[capability/32].Effective, &data[capability/32].Permitted, &data[capability/32].Inheritable} {
		*set &^= 1 << (capability % 32)
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		panic(err)
	}
}
