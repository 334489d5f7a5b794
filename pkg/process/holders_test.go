package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// asHolder has the test binary hold a device until its input ends: with a
// descriptor, or only mapped.
const asHolder = "RAWBLOCK_TEST_AS_HOLDER"

func TestMain(m *testing.M) {
	if how := os.Getenv(asHolder); how != "" {
		hold(how, os.Args[1])
		return
	}
	rig.Main(m)
}

func hold(how, path string) {
	flags := os.O_RDWR
	if how == "named" {
		flags = unix.O_PATH
	}
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		panic(err)
	}
	switch how {
	case "mapped":
		memory, err := unix.Mmap(int(file.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			panic(err)
		}
		defer unix.Munmap(memory)
		file.Close()
	case "by a child":
		child := exec.Command("sleep", "infinity")
		child.Stdin = file
		if err := child.Start(); err != nil {
			panic(err)
		}
		defer child.Wait()
		defer child.Process.Kill()
		file.Close()
	case "by a thread", "by a thread with descriptors of its own":
		// Another thread than the first one opened it, and waits in the kernel.
		file.Close()
		opened := make(chan bool)
		go func() {
			runtime.LockOSThread()
			if how != "by a thread" {
				if err := unix.Unshare(unix.CLONE_FILES); err != nil {
					panic(err)
				}
			}
			if _, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				panic(err)
			}
			opened <- true
			unix.Pause()
		}()
		<-opened
	case "read-only":
		if file, err = os.Open(path); err != nil {
			panic(err)
		}
	}
	fmt.Fprintln(os.Stdout, "ready")
	os.Stdin.Read(make([]byte, 1))
	runtime.KeepAlive(file)
}

// startHolder starts a process that holds a device.
func startHolder(t *testing.T, how, path string) *exec.Cmd {
	t.Helper()
	return startHolderIn(t, how, path, 0)
}

// startHolderIn does so in new namespaces.
func startHolderIn(t *testing.T, how, path string, namespaces uintptr) *exec.Cmd {
	t.Helper()
	command := exec.CommandContext(rig.Context(t), os.Args[0], path)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	command.Env = append(os.Environ(), asHolder+"="+how)
	_, err := command.StdinPipe()
	rig.Must(t, err)
	output, err := command.StdoutPipe()
	rig.Must(t, err)
	rig.Must(t, command.Start())
	t.Cleanup(func() { command.Process.Kill(); command.Wait() })
	if _, err := output.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	return command
}

func TestHolders(t *testing.T) {
	disk, other := rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB)
	ctx, table := rig.Context(t), New("/proc")
	node := filepath.Join(t.TempDir(), "node")
	number := disk.Number()
	rig.Must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(number.Major, number.Minor))))
	byDescriptor, byMapping := startHolder(t, "open", disk.Path), startHolder(t, "mapped", node)
	startHolder(t, "open", other.Path)

	want := map[int]string{byDescriptor.Process.Pid: disk.Path, byMapping.Process.Pid: node}
	holders, err := table.Holders(ctx, number, 0)
	rig.Must(t, err)
	got := map[int]string{}
	for _, holder := range holders {
		if !strings.HasPrefix(os.Args[0], filepath.Dir(os.Args[0])+"/"+holder.Command) || holder.Container != "" {
			t.Errorf("process %d is said to be %q in container %q", holder.PID, holder.Command, holder.Container)
		}
		for _, path := range []string{disk.Path, node} {
			var st unix.Stat_t
			rig.Must(t, unix.Stat(path, &st))
			if len(holder.Nodes) == 1 && holder.Nodes[0].Inode == st.Ino {
				got[holder.PID] = path
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("holders: %s", diff)
	}
	if holders, err := table.Holders(ctx, number, byDescriptor.Process.Pid); err != nil || len(holders) != 1 || holders[0].PID != byMapping.Process.Pid {
		t.Errorf("less one: %+v, %v", holders, err)
	}
	byMapping.Process.Kill()
	byDescriptor.Process.Kill()
	byMapping.Wait()
	byDescriptor.Wait()
	if holders, err := table.Holders(ctx, number, 0); err != nil || len(holders) > 0 {
		t.Errorf("after their end: %+v, %v", holders, err)
	}
}

// holders returns the numbers of the processes that hold the device.
func holders(t *testing.T, disk *rig.Disk) []int {
	t.Helper()
	all, err := New("/proc").Holders(rig.Context(t), disk.Number(), 0)
	rig.Must(t, err)
	var found []int
	for _, holder := range all {
		if len(holder.Nodes) != 1 {
			t.Errorf("process %d (%s) holds the nodes %v", holder.PID, holder.Command, holder.Nodes)
		}
		found = append(found, holder.PID)
	}
	return found
}

func TestWaysToHold(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	for how, namespaces := range map[string]uintptr{
		"open": syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, "mapped": syscall.CLONE_NEWPID, "by a thread": 0, "read-only": 0,
		"by a thread with descriptors of its own": 0,
	} {
		t.Run(how, func(t *testing.T) {
			holder := startHolderIn(t, how, disk.Path, namespaces)
			if got := holders(t, disk); !slices.Equal(got, []int{holder.Process.Pid}) {
				t.Errorf("held by %v, want %d", got, holder.Process.Pid)
			}
			holder.Process.Kill()
			holder.Wait()
			if got := holders(t, disk); len(got) > 0 {
				t.Errorf("held by %v after the end of it", got)
			}
		})
	}
}

// A process that was handed the device has it, whoever opened it.
func TestHeldByAChild(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	parent := startHolder(t, "by a child", disk.Path)
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent.Process.Pid, parent.Process.Pid))
	rig.Must(t, err)
	for thread := range threads(t, parent.Process.Pid) {
		more, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent.Process.Pid, thread))
		if err == nil && thread != parent.Process.Pid {
			children = append(children, more...)
		}
	}
	var child int
	_, err = fmt.Sscan(string(children), &child)
	rig.Must(t, err)
	t.Cleanup(func() { unix.Kill(child, unix.SIGKILL) }) // It has ended, unless its parent was killed first.
	if got := holders(t, disk); !slices.Equal(got, []int{child}) {
		t.Errorf("held by %v, want the child %d of %d", got, child, parent.Process.Pid)
	}
}

// threads returns the numbers of the threads of a process.
func threads(t *testing.T, pid int) map[int]bool {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	rig.Must(t, err)
	found := map[int]bool{}
	for _, entry := range entries {
		var thread int
		fmt.Sscan(entry.Name(), &thread)
		found[thread] = true
	}
	return found
}

// A descriptor that only names the node does not hold the device: whoever opens it by
// that is checked by the device cgroup as everybody.
func TestNamedIsNotHeld(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	startHolder(t, "named", disk.Path)
	if got := holders(t, disk); len(got) > 0 {
		t.Errorf("held by %v", got)
	}
	// Whereas the same node opened as well is.
	holder := startHolder(t, "open", disk.Path)
	if got := holders(t, disk); !slices.Equal(got, []int{holder.Process.Pid}) {
		t.Errorf("held by %v, want %d", got, holder.Process.Pid)
	}
}

// Processes come and go, and open and close the device, while they are looked at.
func TestHoldersComeAndGo(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	script := `while :; do (exec 3<"$0"; exec 3<&-; exec 4<"$0"); done`
	var commands []*exec.Cmd
	for range 3 {
		command := exec.CommandContext(rig.Context(t), "sh", "-c", script, disk.Path)
		rig.Must(t, command.Start())
		commands = append(commands, command)
	}
	t.Cleanup(func() {
		for _, command := range commands {
			command.Process.Kill()
			command.Wait()
		}
	})
	stays := startHolder(t, "open", disk.Path)
	for range 20 {
		all, err := New("/proc").Holders(rig.Context(t), disk.Number(), 0)
		rig.Must(t, err)
		if !slices.ContainsFunc(all, func(holder Holder) bool { return holder.PID == stays.Process.Pid }) {
			t.Fatalf("the one that stays is not among %+v", all)
		}
	}
}

func TestParseFlags(t *testing.T) {
	for text, want := range map[string]uint64{
		"pos:\t0\nflags:\t0100002\nmnt_id:\t26\n": 0o100002, "flags:\t012000000": 0o12000000, "flags: 0\n": 0,
	} {
		if got, err := parseFlags(text); err != nil || got != want {
			t.Errorf("%q: %#o, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "pos:\t0\n", "flags:\n", "flags:\t8\n", "flags:\t-1\n"} {
		if got, err := parseFlags(text); err == nil {
			t.Errorf("%q is taken for %#o", text, got)
		}
	}
}
