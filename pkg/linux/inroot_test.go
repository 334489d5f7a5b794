package linux_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The links of a real container: those that it plants, and those of its /proc, which
// lead past any root that is followed by name.
func TestOpenDirBelowInContainer(t *testing.T) {
	container := rig.NewContainer(t, oci.Config{})
	outside := t.TempDir()
	container.Run(t, "sh", "-ec", "ln -s "+outside+" /dev/out; ln -s ../../../../../.."+outside+" /dev/up; ln -s /proc/1/root/mnt /dev/magic; ln -s /dev/out /dev/two; mkdir /dev/real; ln -s real /dev/near")
	pid, err := container.PID(rig.Context(t))
	rig.Must(t, err)
	root, err := hold(t, pid).OpenRoot()
	rig.Must(t, err)
	defer root.Close()
	for path, want := range map[string]error{
		"/dev": nil, "/dev/real": nil, "/dev/../mnt": nil, "/../../../dev/real": nil,
		"/proc/1":  nil, // A directory of the container's own /proc.
		"/dev/out": syscall.ELOOP, "/dev/up": syscall.ELOOP, "/dev/magic": syscall.ELOOP, "/dev/two": syscall.ELOOP, "/dev/near": syscall.ELOOP,
		"/proc/self": syscall.ELOOP, "/proc/self/root": syscall.ELOOP, "/proc/1/root": syscall.ELOOP, "/proc/1/cwd/dev": syscall.ELOOP,
		outside: syscall.ENOENT,
	} {
		dir, err := linux.OpenDirBelow(root, path)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if err == nil {
			dir.Close()
		}
	}
	// What is made there is seen inside, and by nobody else.
	dir, err := linux.OpenDirBelow(root, "/dev/real")
	rig.Must(t, err)
	defer dir.Close()
	rig.Must(t, linux.CreateFile(dir, "file"))
	container.Run(t, "stat", "/dev/real/file")
	if _, err := os.Lstat(filepath.Join(container.Rootfs, "dev/real")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("on the host: %v", err)
	}
}

// Whatever the umask, a node has the mode that it is to have.
func TestUmask(t *testing.T) {
	rig.RequireRoot(t)
	number := linux.DeviceNumber{Major: 7, Minor: 1<<20 - 1}
	for _, umask := range []int{0, 0o022, 0o777} {
		dir := openDir(t, t.TempDir())
		before := unix.Umask(umask)
		err := linux.MakeBlockNode(dir, "node", number)
		unix.Umask(before)
		rig.Must(t, err)
		wantNode(t, dir.Name()+"/node", number, 0, 0, 0)
		node, err := linux.OpenPathAt(dir, "node")
		rig.Must(t, err)
		unix.Umask(umask)
		err = linux.SetOwner(node, 3, 4, 0o666)
		tree, treeErr := linux.BlockNodeTree(number, 5, 6, 0o660)
		unix.Umask(before)
		node.Close()
		rig.Must(t, err)
		wantNode(t, dir.Name()+"/node", number, 3, 4, 0o666)
		rig.Must(t, treeErr)
		info, err := linux.Stat(tree)
		tree.Close()
		if err != nil || !info.IsBlockDevice() || info.Device != number {
			t.Errorf("the tree is %+v, %v", info, err)
		}
	}
}

// A node of one's own in a filesystem that cannot be written, or where a link is.
func TestMakeBlockNodeRefused(t *testing.T) {
	path := rig.StateDir(t)
	dir, number := openDir(t, path), linux.DeviceNumber{Major: 7}
	rig.Must(t, os.Symlink(t.TempDir()+"/elsewhere", path+"/link"))
	if err := linux.MakeBlockNode(dir, "link", number); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("where a link leads elsewhere: %v", err)
	}
	rig.Must(t, unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	if err := linux.MakeBlockNode(openDir(t, path), "node", number); !errors.Is(err, syscall.EROFS) {
		t.Errorf("in a filesystem that is read-only: %v", err)
	}
}

// The file belongs to the user, and this process to root, whatever thread it runs on.
func TestCreateFileAs(t *testing.T) {
	rig.RequireRoot(t)
	dir := openDir(t, t.TempDir())
	rig.Must(t, os.Chmod(dir.Name(), 0o777))
	for range 20 {
		rig.Must(t, linux.CreateFileAs(dir, "theirs", 1234, 5678))
		var st unix.Stat_t
		rig.Must(t, unix.Lstat(dir.Name()+"/theirs", &st))
		if st.Uid != 1234 || st.Gid != 5678 || st.Size != 0 {
			t.Fatalf("the file belongs to %d:%d", st.Uid, st.Gid)
		}
		if err := linux.CreateFileAs(dir, "theirs", 1, 1); !errors.Is(err, syscall.EEXIST) {
			t.Errorf("made twice: %v", err)
		}
		rig.Must(t, linux.RemoveFile(dir, "theirs"))
		own := newFile(t, dir.Name()+"/own")
		rig.Must(t, unix.Lstat(own, &st))
		if st.Uid != 0 {
			t.Fatalf("the process makes files of user %d", st.Uid)
		}
		rig.Must(t, os.Remove(own))
	}
	rig.Must(t, os.Chmod(dir.Name(), 0o700))
	if err := linux.CreateFileAs(dir, "theirs", 1234, 5678); !errors.Is(err, syscall.EACCES) {
		t.Errorf("where the user may not write: %v", err)
	}
}
