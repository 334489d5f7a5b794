package process

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The nodes of a container are those that its first process sees.
func TestNodes(t *testing.T) {
	rig.RequireRoot(t)
	table := fixture(t, map[int]struct {
		cgroup string
		start  int
	}{1: {"0::/\n", 1}, 20: {"0::/docker/" + id1 + "\n", 500}, 30: {"0::/docker/" + id1 + "\n", 100}, 40: {"0::/docker/" + id2 + "\n", 50}})
	for _, pid := range []int{1, 20, 30, 40, os.Getpid()} {
		namespaces := filepath.Join(table.root, fmt.Sprint(pid), "ns")
		rig.Must(t, os.MkdirAll(namespaces, 0o755))
		rig.Must(t, os.Symlink(fmt.Sprintf("mnt:[%d]", pid), filepath.Join(namespaces, "mnt")))
		rig.Must(t, os.MkdirAll(filepath.Join(table.root, fmt.Sprint(pid), "root"), 0o755))
	}
	for pid, names := range map[int][]string{1: {"sda"}, 20: {"wrong"}, 30: {"xvda", "xvdb"}} {
		dir := filepath.Join(table.root, fmt.Sprint(pid), "root/dev")
		rig.Must(t, os.MkdirAll(dir, 0o755))
		for i, name := range names {
			rig.Must(t, unix.Mknod(filepath.Join(dir, name), unix.S_IFBLK|0o600, int(unix.Mkdev(8, uint32(i)))))
		}
		rig.Must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		rig.Must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	}
	got, err := table.Nodes() // Process 40 has no /dev.
	rig.Must(t, err)
	want := []Node{
		{Container: id1, PID: 30, Path: "/dev/xvda", Number: linux.DeviceNumber{Major: 8, Minor: 0}},
		{Container: id1, PID: 30, Path: "/dev/xvdb", Number: linux.DeviceNumber{Major: 8, Minor: 1}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
