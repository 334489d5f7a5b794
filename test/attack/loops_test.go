package attack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// loopChangeFD is LOOP_CHANGE_FD of linux/loop.h, which golang.org/x/sys lacks.
const loopChangeFD = 0x4c06

// openNode opens a device node as a pod does: for writing where the kernel lets it.
func openNode(t *testing.T, path string) *os.File {
	t.Helper()
	node, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		node, err = os.Open(path)
	}
	rig.Must(t, err)
	return node
}

// changeFile has the loop device at a path show another file of the same size.
func changeFile(t *testing.T, path, file string) {
	t.Helper()
	node := openNode(t, path)
	defer node.Close()
	backing, err := os.Open(file)
	rig.Must(t, err)
	defer backing.Close()
	rig.Must(t, unix.IoctlSetInt(int(node.Fd()), loopChangeFD, int(backing.Fd())))
}

// relabel gives the loop device at a path another label.
func relabel(t *testing.T, path, label string) {
	t.Helper()
	node := openNode(t, path)
	defer node.Close()
	status := statusOf(t, path)
	clear(status.File_name[:])
	copy(status.File_name[:unix.LO_NAME_SIZE-1], label)
	rig.Must(t, unix.IoctlLoopSetStatus64(int(node.Fd()), &status))
}

// detach detaches the loop device at a path: the kernel does so when its last user
// closes it.
func detach(t *testing.T, path string) {
	t.Helper()
	node := openNode(t, path)
	defer node.Close()
	rig.Must(t, unix.IoctlSetInt(int(node.Fd()), unix.LOOP_CLR_FD, 0))
}

func statusOf(t *testing.T, path string) unix.LoopInfo64 {
	t.Helper()
	node, err := os.Open(path)
	rig.Must(t, err)
	defer node.Close()
	status, err := unix.IoctlLoopGetStatus64(int(node.Fd()))
	rig.Must(t, err)
	return *status
}

// bait makes a file of the attacker's, of a size, that goes with its test.
func bait(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bait")
	rig.Must(t, os.WriteFile(path, []byte(baited), 0o600))
	rig.Must(t, os.Truncate(path, size))
	return path
}

// baited is what the attacker wants the victim to read.
const baited = "what the attacker wrote"

// loopsOver lists the loop devices over a file or device.
func loopsOver(t *testing.T, path string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	rig.Must(t, err)
	var found []string
	for _, file := range files {
		if backing, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(backing)) == path {
			found = append(found, filepath.Base(filepath.Dir(filepath.Dir(file))))
		}
	}
	return found
}

// shows fails the test unless whoever reads at a path, past the page cache, sees text.
func shows(t *testing.T, who, path, text string) {
	t.Helper()
	if got := rig.ReadPastCache(t, path, len(text), 0); got != text {
		t.Errorf("%s reads %q, not %q", who, got, text)
	}
}
