package rig

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Filesystem makes a filesystem of a kind (ext4, xfs, btrfs) and a size in bytes
// on a disk of its own, and returns where it is mounted. It goes with its test.
func Filesystem(t testing.TB, kind string, size int64) string {
	t.Helper()
	disk, dir := NewDisk(t, size), t.TempDir()
	if output, err := exec.CommandContext(t.Context(), "mkfs."+kind, "-q", disk.Path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", kind, err, output)
	}
	Must(t, unix.Mount(disk.Path, dir, kind, 0, ""))
	t.Cleanup(func() { UnmountAll(t, dir) })
	return dir
}
