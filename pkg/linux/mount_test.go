package linux_test

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

var binds = map[string]func(source, target linux.Descriptor) error{
	"as the kernel can": linux.BindFile,
	"detached":          linux.BindDetached,
	"by path":           linux.BindByPath,
}

func TestBindFile(t *testing.T) {
	for name, bind := range binds {
		t.Run(name, func(t *testing.T) {
			disk, dir := rig.NewDisk(t, rig.MiB), rig.KubeletDir(t)
			target := newFile(t, dir+"/target")
			rig.Must(t, bind(handle(t, disk.Path), handle(t, target)))

			info, err := linux.StatAt(openDir(t, dir), "target")
			rig.Must(t, err)
			if !info.IsBlockDevice() || info.Device != disk.Number() || !info.MountRoot {
				t.Errorf("at the target there is %+v, want the disk %s, mounted", info, disk.Number())
			}
			var fs unix.Statfs_t
			rig.Must(t, unix.Statfs(target, &fs))
			if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NOEXEC); fs.Flags&want != want {
				t.Errorf("the mount has flags %#x, want read-only, nosuid and noexec (%#x)", fs.Flags, want)
			}
			if err := os.Chmod(target, 0o666); !errors.Is(err, unix.EROFS) {
				t.Errorf("chmod of the host's node through the target: %v, want %v", err, unix.EROFS)
			}
			rig.WriteAt(t, target, "still writable", 0)
			if got := rig.ReadAt(t, disk.Backing, 14, 0); got != "still writable" {
				t.Errorf("on the disk there is %q", got)
			}
		})
	}
}

// What the handles refer to counts, not what their paths have come to lead to.
func TestBindFileMountsWhatWasOpened(t *testing.T) {
	for name, bind := range binds {
		t.Run(name, func(t *testing.T) {
			disk, other, dir := rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB), rig.KubeletDir(t)
			link := dir + "/link"
			rig.Must(t, os.Symlink(disk.Path, link))
			source := handle(t, link)
			rig.Must(t, os.Remove(link))
			rig.Must(t, os.Symlink(other.Path, link))
			rig.Must(t, bind(source, handle(t, newFile(t, dir+"/target"))))
			if info, err := linux.StatAt(openDir(t, dir), "target"); err != nil || info.Device != disk.Number() {
				t.Errorf("mounted %s (%v), want %s", info.Device, err, disk.Number())
			}
		})
	}
}

func TestBindFileOnRemovedTarget(t *testing.T) {
	for name, bind := range binds {
		t.Run(name, func(t *testing.T) {
			disk, dir := rig.NewDisk(t, rig.MiB), rig.KubeletDir(t)
			target := handle(t, newFile(t, dir+"/target"))
			rig.Must(t, os.Remove(dir+"/target"))
			if err := bind(handle(t, disk.Path), target); !errors.Is(err, unix.ENOENT) {
				t.Errorf("got %v, want %v", err, unix.ENOENT)
			}
		})
	}
}

// The host's /dev is shared. A mount stacked on the target later must not appear
// on the host's own node as well.
func TestBindFileLeavesThePeerGroup(t *testing.T) {
	rig.RequireRoot(t)
	dir := t.TempDir()
	t.Run("in a mount namespace of its own", func(t *testing.T) {
		runtime.LockOSThread() // And never unlocked: the thread ends with the test, its mounts with the thread.
		rig.Must(t, unix.Unshare(unix.CLONE_NEWNS))
		rig.Must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		dev, kubelet := dir+"/dev", dir+"/kubelet"
		for _, path := range []string{dev, kubelet} {
			rig.Must(t, os.Mkdir(path, 0o700))
			rig.Must(t, unix.Mount("rawblock-test", path, "tmpfs", 0, ""))
			rig.Must(t, unix.Mount("", path, "", unix.MS_SHARED, ""))
		}
		rig.Must(t, unix.Mknod(dev+"/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(linux.LoopMajor, 0))))
		target := newFile(t, kubelet+"/target")
		rig.Must(t, linux.BindDetached(handle(t, dev+"/disk"), handle(t, target)))

		before := mountsOfThread(t)
		rig.Must(t, unix.Mount(newFile(t, dir+"/stacked"), target, "", unix.MS_BIND, ""))
		if got := mountsOfThread(t) - before; got != 1 {
			t.Errorf("stacking one mount on the target made %d mounts", got)
		}
	})
}

func mountsOfThread(t *testing.T) int {
	t.Helper()
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	rig.Must(t, err)
	return strings.Count(string(table), "\n")
}

func TestUnmountTakesTheTopmost(t *testing.T) {
	disk, other, dir := rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB), rig.KubeletDir(t)
	place := openDir(t, dir)
	newFile(t, dir+"/target")
	for _, source := range []*rig.Disk{disk, other} {
		target, err := linux.OpenPathAt(place, "target")
		rig.Must(t, err)
		rig.Must(t, linux.BindFile(handle(t, source.Path), target))
		target.Close() // A handle keeps the mount below it busy.
	}
	for _, want := range []linux.DeviceNumber{disk.Number(), {}} {
		rig.Must(t, linux.Unmount(place, "target", false))
		info, err := linux.StatAt(place, "target")
		rig.Must(t, err)
		if info.Device != want || info.MountRoot != (want != linux.DeviceNumber{}) {
			t.Errorf("below there is %+v, want device %s", info, want)
		}
	}
	if err := linux.Unmount(place, "target", false); !errors.Is(err, unix.EINVAL) {
		t.Errorf("unmount of what is not mounted: %v, want %v", err, unix.EINVAL)
	}
}

func TestUnmountInUse(t *testing.T) {
	disk, dir := rig.NewDisk(t, rig.MiB), rig.KubeletDir(t)
	place, target := openDir(t, dir), newFile(t, dir+"/target")
	rig.Must(t, bindOnce(t, disk.Path, target))
	user := device(t, target)
	if err := linux.Unmount(place, "target", false); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmount in use: %v, want %v", err, unix.EBUSY)
	}
	rig.Must(t, linux.Unmount(place, "target", true))
	if info, err := linux.StatAt(place, "target"); err != nil || info.MountRoot || info.Type != 0 {
		t.Errorf("after the lazy unmount there is %+v (%v), want the plain file", info, err)
	}
	if _, err := user.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("who had it open cannot read any more: %v", err)
	}
}

func TestUnmountDoesNotFollowLinks(t *testing.T) {
	disk, dir := rig.NewDisk(t, rig.MiB), rig.KubeletDir(t)
	place, target := openDir(t, dir), newFile(t, dir+"/target")
	rig.Must(t, bindOnce(t, disk.Path, target))
	rig.Must(t, os.Symlink(target, dir+"/link"))
	for _, lazy := range []bool{false, true} {
		if err := linux.Unmount(place, "link", lazy); !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount of a link, lazy=%t: %v, want %v", lazy, err, unix.EINVAL)
		}
	}
	if info, err := linux.StatAt(place, "target"); err != nil || !info.MountRoot {
		t.Errorf("what the link leads to is %+v (%v), no longer mounted", info, err)
	}
}

// bindOnce mounts source on target and keeps no handle.
func bindOnce(t *testing.T, source, target string) error {
	t.Helper()
	from, err := linux.OpenPath(source)
	rig.Must(t, err)
	defer from.Close()
	to, err := linux.OpenPath(target)
	rig.Must(t, err)
	defer to.Close()
	return linux.BindFile(from, to)
}
