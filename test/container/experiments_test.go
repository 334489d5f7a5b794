package container

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Experiment 1: make a node for the disk in the container's /dev, from the host.
// The container does not see it: its /dev is a tmpfs of its own, in its own mount
// namespace, which lies over the directory that the host sees.
func TestNodeMadeByTheHostIsNotSeenInside(t *testing.T) {
	disk, container := rig.NewDisk(t, rig.MiB), rig.NewContainer(t, oci.Config{})
	makeNode(t, filepath.Join(container.Rootfs, "dev/xvdb"), disk.Number())

	inside := strings.Fields(container.Run(t, "ls", "/dev"))
	if slices.Contains(inside, "xvdb") {
		t.Errorf("the container's /dev shows the node: %q", inside)
	}
	if !slices.Contains(inside, "null") {
		t.Errorf("the container's /dev lacks what the runtime makes there: %q", inside)
	}
	if mounts := container.Run(t, "cat", "/proc/mounts"); !strings.Contains(mounts, "tmpfs /dev tmpfs ") {
		t.Errorf("the container's /dev is no tmpfs:\n%s", mounts)
	}
}

// Experiment 2: put a filesystem on the disk and mount it below the container's
// root, from the host. The container does not see it: runtimes start containers
// with private propagation, where no mount made later comes in.
//
// The second case proves that propagation is the reason, and that the first one
// would see the mount if it were there. Its "rslave" is no way out: the directory
// must lie on a shared mount when the container starts, and it would bring
// filesystems only, no devices.
func TestMountMadeByTheHostIsNotSeenInside(t *testing.T) {
	rig.RequireProgram(t, "mkfs.ext4")
	for propagation, seen := range map[string]bool{"rprivate": false, "rslave": true} {
		t.Run(propagation, func(t *testing.T) {
			shared := rig.KubeletDir(t)
			container := rig.NewContainer(t, oci.Config{Dir: shared, Propagation: propagation})
			dir := filepath.Join(container.Rootfs, "mnt")
			mountNewFilesystem(t, rig.NewDisk(t, 8*rig.MiB), dir)
			rig.Must(t, os.WriteFile(filepath.Join(dir, "on-the-disk"), nil, 0o600))

			inside := strings.Fields(container.Run(t, "ls", "/mnt"))
			if slices.Contains(inside, "on-the-disk") != seen {
				t.Errorf("the container's /mnt shows %q", inside)
			}
			mounts := container.Run(t, "cat", "/proc/mounts")
			if strings.Contains(mounts, " /mnt ext4 ") != seen {
				t.Errorf("the container's mounts:\n%s", mounts)
			}
		})
	}
}

// Experiment 3: make a file and a directory below the container's root, from the
// host. The container sees them: they are in the filesystem that it runs on.
func TestFileMadeByTheHostIsSeenInside(t *testing.T) {
	container := rig.NewContainer(t, oci.Config{})
	dir := filepath.Join(container.Rootfs, "mnt/directory")
	rig.Must(t, os.Mkdir(dir, 0o755))
	rig.Must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("from the host"), 0o644))

	if inside := container.Run(t, "cat", "/mnt/directory/file"); inside != "from the host" {
		t.Errorf("the container reads %q", inside)
	}
}

// A node alone is not enough: one that the container makes itself is there, and
// cannot be opened. The device cgroup allows what the runtime handed over.
func TestNodeOfDeviceNotHandedOverCannotBeOpened(t *testing.T) {
	disk, container := rig.NewDisk(t, rig.MiB), rig.NewContainer(t, oci.Config{})
	number := disk.Number()
	container.Run(t, "mknod", "/dev/xvdb", "b", fmt.Sprint(number.Major), fmt.Sprint(number.Minor))
	wantBlockDevice(t, container, "/dev/xvdb", number)

	output, err := container.Exec(rig.Context(t), "head", "-c", "1", "/dev/xvdb")
	if err == nil || !strings.Contains(output, "Operation not permitted") {
		t.Errorf("opening it: %q, %v", output, err)
	}
}

func makeNode(t *testing.T, path string, number linux.DeviceNumber) {
	t.Helper()
	rig.Must(t, unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(number.Major, number.Minor))))
}

// mountNewFilesystem makes a filesystem on the disk and mounts it until the test ends.
func mountNewFilesystem(t *testing.T, disk *rig.Disk, dir string) {
	t.Helper()
	if output, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", disk.Path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, output)
	}
	rig.Must(t, unix.Mount(disk.Path, dir, "ext4", 0, ""))
	t.Cleanup(func() { rig.Must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}
