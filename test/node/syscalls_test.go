package node

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What a publish and unpublish do does not depend on how many mounts the node
// has; and they run no program and do not read the mount table.
func TestSystemCallsDoNotGrowWithMounts(t *testing.T) {
	kubeletDir, stateDir := rig.KubeletDir(t), rig.StateDir(t)
	rig.RequireProgram(t, "strace")
	plugin := rig.Start(t, rig.Build(t, ""), kubeletDir, stateDir)
	volume := plugin.NewVolume(t, "vol", rig.NewDisk(t, rig.MiB).Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(rig.Context(t)))

	few := callsOfPublish(t, plugin, volume, target)
	dir := rig.StateDir(t)
	for i := range 2000 {
		place := filepath.Join(dir, fmt.Sprint(i))
		rig.Must(t, bind("/dev/null", place))
	}
	many := callsOfPublish(t, plugin, volume, target)
	if diff := cmp.Diff(few, many); diff != "" {
		t.Errorf("with 2,000 mounts more: %s", diff)
	}
	if few["move_mount"] != 1 || few["umount2"] != 1 {
		t.Errorf("not the calls of one publish and unpublish: %v", few)
	}
}

// runtimeCalls are those by which the Go runtime makes and interrupts its threads.
var runtimeCalls = []string{"clone", "clone3", "tgkill"}

// callsOfPublish counts the system calls on files and mounts of a publish and
// unpublish. Those by which the Go runtime and gRPC wait and talk are left out:
// they vary from call to call.
func callsOfPublish(t *testing.T, plugin *rig.Process, volume *rig.Volume, target string) map[string]int {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	tracer := exec.CommandContext(t.Context(), "strace", "-f", "-p", fmt.Sprint(plugin.Pid()), "-o", trace,
		"-e", "trace=%file,%process,ioctl,getdents64,open_tree,move_mount,mount_setattr")
	said, err := tracer.StderrPipe()
	rig.Must(t, err)
	rig.Must(t, tracer.Start())
	// It says so when it has attached.
	if !bufio.NewScanner(said).Scan() {
		t.Fatal("strace said nothing")
	}
	rig.Must(t, volume.Publish(rig.Context(t), target))
	rig.Must(t, volume.Unpublish(rig.Context(t), target))
	rig.Must(t, tracer.Process.Signal(unix.SIGINT))
	tracer.Wait() //nolint:errcheck // It says that it was interrupted.

	text, err := os.ReadFile(trace)
	rig.Must(t, err)
	if program := regexp.MustCompile(`(?m)^.*(execve|mountinfo|/proc/[^ ]*mounts).*$`).Find(text); program != nil {
		t.Errorf("not for a publish: %s", program)
	}
	calls := map[string]int{}
	for line := range strings.Lines(string(text)) {
		// PID CALL(ARGUMENTS) = RESULT; a call that another thread interrupts has a
		// second line, "<... CALL resumed>".
		if name, _, ok := strings.Cut(strings.Join(strings.Fields(line)[1:], " "), "("); ok && !strings.HasPrefix(name, "<") && !slices.Contains(runtimeCalls, name) {
			calls[name]++
		}
	}
	return calls
}
