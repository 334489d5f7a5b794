package rig

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Filesystem makes a filesystem of a kind (ext4, xfs, btrfs) and a size in bytes
// on a disk of its own, and returns where it is mounted. It goes with its test.
func Filesystem(t testing.TB, kind string, size int64) string {
	t.Helper()
	return NewDisk(t, size).Mount(t, kind)
}

// Mount makes a filesystem of a kind on the disk and returns where it is mounted,
// until the test ends.
func (d *Disk) Mount(t testing.TB, kind string) string {
	t.Helper()
	dir := t.TempDir()
	if output, err := exec.CommandContext(t.Context(), "mkfs."+kind, "-q", d.Path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", kind, err, output)
	}
	Must(t, unix.Mount(d.Path, dir, kind, 0, ""))
	t.Cleanup(func() {
		detachFilesOn(t, dir)
		UnmountAll(t, dir)
	})
	return dir
}

// detachFilesOn detaches the loop devices over files on the filesystem at a path,
// which a test that failed has left: they keep it alive when it is unmounted.
func detachFilesOn(t testing.TB, path string) {
	t.Helper()
	place, err := linux.OpenDir(path)
	Must(t, err)
	defer place.Close()
	root, err := linux.Stat(place)
	Must(t, err)
	files, err := filepath.Glob("/sys/block/loop*/loop")
	Must(t, err)
	for _, file := range files {
		node := "/dev/" + filepath.Base(filepath.Dir(file))
		loop, err := os.Open(node)
		if err != nil {
			continue // It has gone meanwhile.
		}
		if status, err := linux.StatusOfLoop(loop); err == nil && status.Backing.Device == root.ID.Device {
			(&Disk{Path: node}).clearViews(t)
			linux.ClearLoop(loop) //nolint:errcheck // The leak check tells.
		}
		loop.Close()
	}
}
