package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	vm "github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// boot makes a machine's root out of the host's, in namespaces of its own: the same
// programs, but no units, nothing that runs, and cgroup v2 alone. Its first process
// is systemd.
const boot = `set -e
root=$1 self=$2
mount --make-rprivate /
mount -t tmpfs rawblock-test "$root"
cd "$root"
mkdir upper work merged
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work rawblock-test merged
cd merged
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom; do touch dev/$node; mount --bind /dev/$node dev/$node; done
for directory in run tmp var etc/systemd/system; do mount -t tmpfs -o mode=755 tmpfs $directory; done
touch run/self
mount --bind "$self" run/self
printf '[Unit]\nDefaultDependencies=no\n' >etc/systemd/system/rawblock-test.target
mkdir host
pivot_root . host
umount -l host
exec env -i container=rawblock-test PATH="$PATH" /lib/systemd/systemd --unit=rawblock-test.target --log-target=console --show-status=0
`

// machine is a systemd that runs as the first process of namespaces of its own. It
// goes with its test.
type machine struct {
	// pid is that of its systemd, as the host counts.
	pid int
	// cgroup is the directory of its root cgroup, as the host sees it.
	cgroup string
	// log is the file with what systemd prints.
	log string
}

func startMachine(t *testing.T) *machine {
	t.Helper()
	rig.RequireRoot(t)
	for _, name := range []string{"/lib/systemd/systemd", "systemctl", "systemd-run", "unshare", "nsenter"} {
		rig.RequireProgram(t, name)
	}
	host, err := devcgroup.FindHierarchies("")
	rig.Must(t, err)
	if host.Unified == "" {
		t.Fatal("cgroup2 is not mounted")
	}
	if vm.Inside() {
		return guestMachine(t)
	}
	m := &machine{log: filepath.Join(t.TempDir(), "log")}
	m.cgroup, err = os.MkdirTemp(host.Unified, "rawblock-test-systemd-")
	rig.Must(t, err)
	t.Cleanup(func() { removeCgroups(t, m.cgroup) })
	self, err := os.Executable()
	rig.Must(t, err)
	log, err := os.Create(m.log)
	rig.Must(t, err)
	defer log.Close()
	// Namespaces begin where the process is: it joins the cgroup first.
	command := exec.CommandContext(rig.Context(t), "sh", "-c", `echo $$ >"$0/cgroup.procs" && exec unshare --mount --cgroup --pid --uts --ipc --net --fork --kill-child sh -c "$@"`,
		m.cgroup, boot, "boot", t.TempDir(), self)
	command.Stdout, command.Stderr = log, log
	rig.Must(t, command.Start())
	t.Cleanup(func() {
		if m.pid != 0 {
			unix.Kill(m.pid, unix.SIGKILL) // It may have ended by itself, and all others with it.
		}
		command.Process.Kill()
		command.Wait()
	})
	m.waitUntilUp(t, command.Process.Pid)
	return m
}

// guestMachine is the machine of the test itself, a guest whose first process is
// systemd. What a test starts there is ended with it (afterwards).
func guestMachine(t *testing.T) *machine {
	t.Helper()
	name, err := os.ReadFile("/proc/1/comm")
	rig.Must(t, err)
	if strings.TrimSpace(string(name)) != "systemd" {
		t.Fatalf("the first process of the guest is %s", name)
	}
	self, err := os.Executable()
	rig.Must(t, err)
	if err := os.Symlink(self, "/run/self"); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return &machine{pid: 1, cgroup: "/sys/fs/cgroup"}
}

func (m *machine) waitUntilUp(t *testing.T, parent int) {
	t.Helper()
	for range 300 {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent)) // It may have none.
		if child := strings.Fields(string(children)); len(child) == 1 {
			m.pid, _ = strconv.Atoi(child[0])
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/systemd/private", m.pid)); err == nil {
				m.run(t, "systemctl", "start", "rawblock-test.target")
				return
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	said, _ := os.ReadFile(m.log)
	t.Fatalf("systemd does not start: %s", said)
}

// command prepares a command that runs in the machine.
func (m *machine) command(ctx context.Context, argv ...string) *exec.Cmd {
	enter := []string{"-t", strconv.Itoa(m.pid), "-m", "-p", "-C", "-u", "-i", "-n", "--"}
	return exec.CommandContext(ctx, "nsenter", append(enter, argv...)...)
}

// try runs a command in the machine and returns what it printed. Where it fails,
// that is the error.
func (m *machine) try(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	output, err := m.command(rig.Context(t), argv...).CombinedOutput()
	said := strings.TrimSpace(string(output))
	if err != nil {
		return said, fmt.Errorf("%v: %w: %s", argv, err, said)
	}
	return said, nil
}

func (m *machine) run(t *testing.T, argv ...string) string {
	t.Helper()
	said, err := m.try(t, argv...)
	rig.Must(t, err)
	return said
}

// afterwards runs a command when the test ends, in a machine that outlasts it.
func (m *machine) afterwards(t *testing.T, argv ...string) {
	t.Helper()
	if !vm.Inside() {
		return
	}
	ctx := context.WithoutCancel(rig.Context(t))
	t.Cleanup(func() {
		if output, err := m.command(ctx, argv...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", argv, err, output)
		}
	})
}

// removeCgroups removes a cgroup and those below, once what was in them has ended.
func removeCgroups(t *testing.T, path string) {
	t.Helper()
	for range 100 {
		var all []string
		filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				all = append(all, path)
			}
			return nil // What is gone need not be removed.
		})
		for _, one := range slices.Backward(all) {
			os.Remove(one) // Below, it is seen whether that worked.
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("the cgroup %s cannot be removed", path)
}
