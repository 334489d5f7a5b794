package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// asProgram has the test binary be the program, so that a test sees its exit
// code, its output and how it takes a signal.
const asProgram = "RAWBLOCK_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	rig.Main(m)
}

// node is a node with the real plugin, and a container that runs.
type node struct {
	*rig.Container
	binary, kubeletDir, stateDir string
	// name is the node's own: of two plugins with one name, each would take away what
	// the other has granted.
	name string
	disk *rig.Disk
	pid  int
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{
		Container: rig.NewContainer(t, oci.Config{}), binary: rig.Build(t, ""),
		kubeletDir: rig.KubeletDir(t), stateDir: rig.StateDir(t), name: "rawblock-test-" + rand.Text(), disk: rig.NewDisk(t, rig.MiB),
	}
	var err error
	n.pid, err = n.PID(rig.Context(t))
	rig.Must(t, err)
	return n
}

// start starts the plugin, and returns once its admin socket answers.
func (n *node) start(t *testing.T) *exec.Cmd {
	t.Helper()
	config := filepath.Join(t.TempDir(), "config.yaml")
	rig.Must(t, os.WriteFile(config, []byte("pools: []\n"), 0o600))
	plugin := exec.CommandContext(rig.Context(t), n.binary, "--node-id="+n.name, "--config="+config,
		"--endpoint="+filepath.Join(n.kubeletDir, "csi.sock"), "--kubelet-dir="+n.kubeletDir, "--state-dir="+n.stateDir)
	var log bytes.Buffer
	plugin.Stderr = &log
	rig.Must(t, plugin.Start())
	t.Cleanup(func() {
		plugin.Process.Kill() //nolint:errcheck // It may have ended by itself.
		plugin.Wait()         //nolint:errcheck // It says that it was killed.
		if t.Failed() {
			t.Logf("The plugin's log:\n%s", &log)
		}
	})
	for rig.Context(t).Err() == nil {
		if conn, err := net.Dial("unix", n.socket()); err == nil {
			conn.Close()
			return plugin
		}
	}
	t.Fatal("the plugin does not serve")
	return nil
}

func (n *node) socket() string { return filepath.Join(n.stateDir, "admin.sock") }

// command is the program with a command line.
func (n *node) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	command := exec.CommandContext(rig.Context(t), os.Args[0], append([]string{"--socket", n.socket()}, args...)...)
	command.Env = append(os.Environ(), asProgram+"=1")
	return command
}

// ctl runs the program, which must end with a code and say the words, and returns what
// it printed.
func (n *node) ctl(t *testing.T, code int, says string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command := n.command(t, args...)
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	if got := command.ProcessState.ExitCode(); got != code || !strings.Contains(stderr.String(), says) || says == "" && stderr.Len() > 0 {
		t.Fatalf("%s: ended with %d (%v), want %d with the words %q:\n%s", args, got, err, code, says, &stderr)
	}
	return stdout.String()
}

// attach is a command line that attaches the disk.
func (n *node) attach(args ...string) []string {
	return append([]string{"attach", "--device", n.disk.Path, "--pid", fmt.Sprint(n.pid), "--path", "/dev/xvdb"}, args...)
}

func (n *node) attachments(t *testing.T) []hotplug.Attachment {
	t.Helper()
	var all []hotplug.Attachment
	rig.Must(t, json.Unmarshal([]byte(n.ctl(t, exitDone, "", "list", "-o", "json")), &all))
	return all
}

// A disk comes into a running container and out of it, through the program and the
// plugin, each a process of its own.
func TestOnANode(t *testing.T) {
	n := newNode(t)
	plugin := n.start(t)
	if steps := n.ctl(t, exitDone, "", n.attach("--dry-run")...); !strings.Contains(steps, "/dev/xvdb") {
		t.Errorf("a dry run says %q", steps)
	}
	if all := n.attachments(t); len(all) > 0 {
		t.Errorf("a dry run attached %v", all)
	}
	var attached hotplug.Attachment
	rig.Must(t, json.Unmarshal([]byte(n.ctl(t, exitDone, "", n.attach("-o", "json")...)), &attached))
	rig.WriteAt(t, n.disk.Path, "hello", 0)
	if got := n.Run(t, "head", "-c", "5", "/dev/xvdb"); got != "hello" {
		t.Errorf("the container reads %q", got)
	}
	if said := n.ctl(t, exitDone, "", n.attach()...); !strings.HasPrefix(said, attached.ID+": "+n.disk.Path+" (1Mi, rw)") {
		t.Errorf("what is attached already is attached as %q", said)
	}

	// The plugin dies, and leaves its socket. The next one takes its place.
	rig.Must(t, plugin.Process.Kill())
	plugin.Wait() //nolint:errcheck // It says that it was killed.
	n.ctl(t, exitUnreachable, "no plugin answers on "+n.socket(), "list")
	plugin = n.start(t)
	if row := n.ctl(t, exitDone, "", "list"); !strings.Contains(row, attached.ID+"  Attached  "+n.disk.Path) {
		t.Errorf("the list is\n%s", row)
	}

	n.detachHeld(t, attached.ID)
	if all := n.attachments(t); len(all) > 0 {
		t.Errorf("there is still %v", all)
	}
	rig.Must(t, plugin.Process.Signal(syscall.SIGTERM))
	rig.Must(t, plugin.Wait())
	if _, err := os.Lstat(n.socket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the plugin left its admin socket: %v", err)
	}
	n.ctl(t, exitUnreachable, "no plugin answers", "list")
}

// detachHeld detaches what a process has open, in vain, and waiting.
func (n *node) detachHeld(t *testing.T, id string) {
	t.Helper()
	holder := n.Run(t, "sh", "-c", "sleep infinity </dev/xvdb >/dev/null 2>&1 & echo $!")
	n.ctl(t, exitInUse, "still is open in process", "detach", id)
	if _, err := n.Exec(rig.Context(t), "head", "-c", "1", "/dev/xvdb"); err == nil {
		t.Error("the container can open the device still")
	}
	waiting := n.wait(t, id)
	rig.Must(t, waiting.Process.Signal(syscall.SIGINT))
	waiting.Wait() //nolint:errcheck // It fails, as the code says.
	if code := waiting.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("Ctrl-C ended it with %d", code)
	}
	waiting = n.wait(t, id)
	n.Run(t, "sh", "-c", "kill "+holder)
	if err := waiting.Wait(); err != nil {
		t.Errorf("once the holder had ended, it ended with %v", err)
	}
}

// wait starts to detach, and returns once the program says that it waits.
func (n *node) wait(t *testing.T, id string) *exec.Cmd {
	t.Helper()
	command := n.command(t, "detach", "--wait", id)
	stderr, err := command.StderrPipe()
	rig.Must(t, err)
	rig.Must(t, command.Start())
	said, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil || !strings.HasPrefix(said, "rawblockctl: waiting: device is in use") {
		t.Errorf("it said %q, %v", said, err)
	}
	return command
}

// What the real plugin refuses, by its kinds.
func TestRefusedOnANode(t *testing.T) {
	n := newNode(t)
	n.start(t)
	pid := fmt.Sprint(n.pid)
	n.ctl(t, exitNotFound, "no device at /dev/rawblock-test-none", "attach", "--device", "/dev/rawblock-test-none", "--pid", pid, "--path", "/dev/xvdb")
	n.ctl(t, exitNotFound, "not found", "attach", "--volume", "none", "--pid", pid, "--path", "/dev/xvdb")
	n.ctl(t, exitRefused, "at /dev/null in the container already", "attach", "--device", n.disk.Path, "--pid", pid, "--path", "/dev/null")
	n.ctl(t, exitRefused, "in no container", "attach", "--device", n.disk.Path, "--pid", fmt.Sprint(os.Getpid()), "--path", "/dev/xvdb")
	claim, err := os.OpenFile(n.disk.Path, os.O_RDONLY|syscall.O_EXCL, 0)
	rig.Must(t, err)
	defer claim.Close()
	n.ctl(t, exitInUse, "in use", n.attach()...)
	n.ctl(t, exitNotFound, "no attachment none", "detach", "none")
	n.ctl(t, exitUsage, `attachment "a/b"`, "detach", "a/b")
}
