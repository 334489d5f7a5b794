package linux_test

import (
	"os"
	"runtime"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A test takes its thread into another mount namespace. That must not be the
// first thread, which stands for the process in /proc/self.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) { rig.Main(m) }

// handle opens a handle on the file at path until the test ends.
func handle(t *testing.T, path string) *linux.File {
	t.Helper()
	file, err := linux.OpenPath(path)
	rig.Must(t, err)
	t.Cleanup(file.Close)
	return file
}

// openDir opens a handle on the directory at path until the test ends.
func openDir(t *testing.T, path string) *linux.File {
	t.Helper()
	file, err := linux.OpenDir(path)
	rig.Must(t, err)
	t.Cleanup(file.Close)
	return file
}

// device opens the device at path for reading until the test ends.
func device(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.Open(path)
	rig.Must(t, err)
	t.Cleanup(func() { file.Close() })
	return file
}

// newFile makes an empty file and returns its path.
func newFile(t *testing.T, path string) string {
	t.Helper()
	rig.Must(t, os.WriteFile(path, nil, 0o600))
	return path
}
