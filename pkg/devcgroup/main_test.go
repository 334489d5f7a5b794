package devcgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(asRuntime); path != "" {
		fmt.Fprintln(os.Stderr, runWithoutLimits(path))
		os.Exit(1)
	}
	rig.Main(m)
}

const allAccess = Read | Write | Mknod

// mounted returns where the cgroups of a version are mounted, and mounts them for the
// test where they are not: both can be had beside each other.
func mounted(t *testing.T, v2 bool) Hierarchies {
	t.Helper()
	rig.RequireRoot(t)
	found, err := FindHierarchies("")
	rig.Must(t, err)
	root, kind, options := found.Devices, "cgroup", "devices"
	if v2 {
		root, kind, options = found.Unified, "cgroup2", ""
	}
	if root == "" {
		root = t.TempDir()
		rig.Must(t, unix.Mount("rawblock-test", root, kind, 0, options))
		t.Cleanup(func() { rig.UnmountAll(t, root) })
	}
	if v2 {
		return Hierarchies{Unified: root, Owner: t.Name()}
	}
	return Hierarchies{Devices: root, Owner: t.Name()}
}

func (h Hierarchies) root() string { return h.Devices + h.Unified }

// box is a cgroup of the test's own, in which processes try to open devices.
type box struct {
	Hierarchies
	dir string
}

// newBox makes a cgroup below another one, or below the root.
func newBox(t *testing.T, hierarchies Hierarchies, parent string) *box {
	t.Helper()
	if parent == "" {
		parent = hierarchies.root()
	}
	dir, err := os.MkdirTemp(parent, "rawblock-test-")
	rig.Must(t, err)
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	})
	return &box{hierarchies, dir}
}

// start starts a process in the cgroup that does nothing, and returns its number.
func (b *box) start(t *testing.T) int {
	t.Helper()
	command := exec.CommandContext(rig.Context(t), "sleep", "infinity")
	rig.Must(t, command.Start())
	t.Cleanup(func() { end(command) })
	rig.Must(t, os.WriteFile(b.dir+"/cgroup.procs", fmt.Append(nil, command.Process.Pid), 0))
	return command.Process.Pid
}

func end(command *exec.Cmd) {
	command.Process.Kill() // It may have ended already.
	command.Wait()
}

// open opens the cgroup as that of a container whose first process is in it.
func (b *box) open(t *testing.T) *Cgroup {
	t.Helper()
	return openAs(t, b.Hierarchies, b.start(t), "")
}

func openAs(t *testing.T, hierarchies Hierarchies, pid int, id string) *Cgroup {
	t.Helper()
	cgroup, err := Open(hierarchies, pid, id)
	rig.Must(t, err)
	t.Cleanup(cgroup.Close)
	return cgroup
}

// try has a process of the cgroup open a device by a node that is made outside. That
// there is no such device is found out after it was let pass.
func (b *box) try(t *testing.T, number linux.DeviceNumber, access Access) error {
	t.Helper()
	node := filepath.Join(t.TempDir(), "node")
	rig.Must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(number.Major, number.Minor))))
	how := map[Access]string{
		Read: `exec 3<"$1"`, Write: `exec 3>"$1"`, Read | Write: `exec 3<>"$1"`,
		Mknod: fmt.Sprintf(`mknod "$1-own" b %d %d`, number.Major, number.Minor),
	}[access]
	output, err := exec.CommandContext(rig.Context(t), "sh", "-ec", `echo $$ >"$0/cgroup.procs"; `+how, b.dir, node).CombinedOutput()
	if strings.Contains(string(output), "No such device or address") {
		return nil
	}
	if err != nil && !strings.Contains(string(output), "Operation not permitted") {
		t.Fatalf("opening device %s for %s: %v: %s", number, access, err, output)
	}
	return err
}

// can returns the accesses that a process of the cgroup has to the device.
func (b *box) can(t *testing.T, number linux.DeviceNumber) string {
	t.Helper()
	var can []string
	for _, access := range []Access{Read, Write, Read | Write, Mknod} {
		if b.try(t, number, access) == nil {
			can = append(can, access.String())
		}
	}
	return strings.Join(can, " ")
}

func (b *box) wantCan(t *testing.T, number linux.DeviceNumber, want string) {
	t.Helper()
	if got := b.can(t, number); got != want {
		t.Errorf("a process has access %q to device %s, want %q", got, number, want)
	}
}

// state is all that the kernel says of the cgroup's devices: the rules, the programs
// and the attributes.
func (b *box) state(t *testing.T) []string {
	t.Helper()
	found, err := attributes(b.dir)
	rig.Must(t, err)
	if b.Devices != "" {
		list, err := os.ReadFile(b.dir + "/devices.list")
		rig.Must(t, err)
		return append(found, slices.Sorted(strings.Lines(string(list)))...)
	}
	for _, program := range b.programs(t) {
		found = append(found, fmt.Sprintf("program %s %x", program.Name, program.Tag))
	}
	return found
}

func (b *box) wantState(t *testing.T, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, b.state(t)); diff != "" {
		t.Errorf("the cgroup is another than before (-before +now):\n%s", diff)
	}
}

// wantGrants checks what is known to be granted.
func wantGrants(t *testing.T, cgroup *Cgroup, want ...Grant) {
	t.Helper()
	got, err := cgroup.Grants()
	rig.Must(t, err)
	slices.SortFunc(got, func(a, b Grant) int { return strings.Compare(a.Number.String(), b.Number.String()) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("granted (-want +got):\n%s", diff)
	}
}

func allow(t *testing.T, cgroup *Cgroup, number linux.DeviceNumber, access Access) {
	t.Helper()
	rig.Must(t, cgroup.Allow(context.Background(), number, access))
	if allowed, err := cgroup.Allows(number, access); err != nil || !allowed {
		t.Errorf("device %s may be opened for %s: %t, %v", number, access, allowed, err)
	}
}

func take(t *testing.T, cgroup *Cgroup, number linux.DeviceNumber) {
	t.Helper()
	rig.Must(t, cgroup.Revoke(context.Background(), number))
}
