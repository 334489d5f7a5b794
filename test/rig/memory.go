package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// memory is a directory on a tmpfs, for the files below loop devices. Most of what the
// tests took was the machine's disk that had to keep what a test wipes and syncs, which
// no test is about. Empty: Main does not run, or not as root.
var memory string

// mountMemory makes that directory in the tests' temporary one.
func mountMemory(dir string) error {
	path := filepath.Join(dir, "memory")
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("rawblock-test", path, "tmpfs", 0, "mode=700"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", path, err)
	}
	memory = path
	return nil
}

func unmountMemory() {
	if err := unix.Unmount(memory, unix.MNT_DETACH); err != nil {
		fmt.Fprintf(os.Stderr, "unmount %s: %v\n", memory, err)
	}
	memory = ""
}

// diskFile returns where the file below a loop device goes: in memory where that can be.
// It goes with its test.
func diskFile(t testing.TB) string {
	t.Helper()
	const name = "rawblock-test-disk"
	if memory == "" {
		return filepath.Join(t.TempDir(), name)
	}
	dir, err := os.MkdirTemp(memory, "")
	Must(t, err)
	t.Cleanup(func() { Must(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, name)
}
