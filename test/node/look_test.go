package node

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// fileFacts is what must not change of a file that is not the driver's.
type fileFacts struct {
	mode   uint32
	inode  uint64
	device uint64
	number uint64
	size   int64
}

func lstat(t *testing.T, path string) fileFacts {
	t.Helper()
	var st unix.Stat_t
	rig.Must(t, unix.Lstat(path, &st))
	return fileFacts{st.Mode, st.Ino, st.Dev, st.Rdev, st.Size}
}

func wantAbsent(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", path, err)
	}
}

func wantEmpty(t *testing.T, dir string, except ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	rig.Must(t, err)
	for _, entry := range entries {
		if !slices.Contains(except, entry.Name()) {
			t.Errorf("left in %s: %s", dir, entry.Name())
		}
	}
}

// wantDevice checks that the target is a block device with the disk's number.
func wantDevice(t *testing.T, target string, disk *rig.Disk) {
	t.Helper()
	facts := lstat(t, target)
	if facts.mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(facts.number) != disk.Number().Major || unix.Minor(facts.number) != disk.Number().Minor {
		t.Errorf("%s is %+v, not the disk %s", target, facts, disk.Path)
	}
}

func wantDevicePublished(t *testing.T, target string) {
	t.Helper()
	if facts := lstat(t, target); facts.mode&unix.S_IFMT != unix.S_IFBLK {
		t.Errorf("%s is no block device: %+v", target, facts)
	}
}

// mountsAt counts the mounts on a path, one upon another.
func mountsAt(t *testing.T, path string) int {
	t.Helper()
	count := 0
	for _, point := range rig.MountPoints(t) {
		if point == path {
			count++
		}
	}
	return count
}

// bind mounts source on a new file at target, as another program would.
func bind(source, target string) error {
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		return err
	}
	return unix.Mount(source, target, "", unix.MS_BIND, "")
}

func mknod(path string, number linux.DeviceNumber) error {
	return unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(number.Major, number.Minor)))
}
