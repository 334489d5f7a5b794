package program_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

var own = program.New("")

// shell runs a script with sh.
func shell(script string) program.Command {
	return program.Command{Name: "sh", Args: []string{"-c", script}}
}

func TestRun(t *testing.T) {
	t.Setenv("SECRET_OF_THE_PLUGIN", "x")
	command := shell("pwd; env; cat")
	command.Stdin, command.Environment = []byte("from the standard input"), []string{"GIVEN=this"}
	stdout, err := own.Run(rig.Context(t), command)
	rig.Must(t, err)
	lines := strings.Split(string(stdout), "\n")
	slices.Sort(lines)
	got := slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "PWD=") }) // Of the shell itself.
	want := []string{"/", "GIVEN=this", "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "from the standard input"}
	if !slices.Equal(got, want) {
		t.Errorf("a program has %q, want %q", got, want)
	}
	if text := fmt.Sprint(command); strings.Contains(text, "standard input") {
		t.Errorf("the standard input is in %q", text)
	}
}

// No descriptor of the plugin and no terminal.
func TestRunAlone(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "of-the-plugin"))
	rig.Must(t, err)
	defer file.Close()
	stdout, err := own.Run(rig.Context(t), shell("ls -l /proc/$$/fd"))
	rig.Must(t, err)
	if strings.Contains(string(stdout), "of-the-plugin") {
		t.Errorf("a program has the descriptors\n%s", stdout)
	}
	// proc(5): the process, its group, session and terminal.
	stdout, err = own.Run(rig.Context(t), shell("cut -d' ' -f1,5-7 /proc/$$/stat"))
	rig.Must(t, err)
	got := strings.Fields(string(stdout))
	if !slices.Equal(got, []string{got[0], got[0], got[0], "0"}) {
		t.Errorf("process, group, session and terminal: %q", got)
	}
}

func TestErrors(t *testing.T) {
	var exit *program.ExitError
	if _, err := own.Run(rig.Context(t), shell("echo why >&2; exit 5")); !errors.As(err, &exit) || *exit != (program.ExitError{Name: "sh", Code: 5, Stderr: "why"}) {
		t.Errorf("a program that fails: %v", err)
	}
	_, err := own.Run(rig.Context(t), shell("head -c 100000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 1"))
	if !errors.As(err, &exit) || len(exit.Stderr) > 8<<10 || !strings.HasSuffix(exit.Stderr, "xend") {
		t.Errorf("of a long message, %d bytes are kept, with %t", len(exit.Stderr), strings.HasSuffix(exit.Stderr, "xend"))
	}
	if _, err := own.Run(rig.Context(t), shell("kill -9 $$")); err == nil || errors.As(err, &exit) && exit.Code == 0 || !strings.Contains(err.Error(), "killed") {
		t.Errorf("a program that is killed: %v", err)
	}
	if _, err := own.Run(rig.Context(t), program.Command{Name: "rawblock-missing"}); !errors.Is(err, program.ErrNotInstalled) {
		t.Errorf("a program that is not there: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := own.Run(rig.Context(t), program.Command{Name: "true"}); err != nil {
		t.Errorf("with the path of the plugin: %v", err)
	}
	for _, name := range []string{"/bin/true", "../bin/true", ""} {
		if _, err := own.Run(rig.Context(t), program.Command{Name: name}); err == nil {
			t.Errorf("%q was run", name)
		}
	}
	if _, err := own.Run(rig.Context(t), shell("cat /dev/zero")); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("output without an end: %v", err)
	}
}

// What was asked to end ends with all that it started. What had done its work all
// the same has not failed.
func TestContextEnds(t *testing.T) {
	dir := t.TempDir()
	script := func(trap string) (program.Command, string) {
		name := filepath.Join(dir, strconv.Itoa(len(trap)))
		return shell(fmt.Sprintf("%s; sleep infinity & echo $! >%s.new; mv %s.new %s; wait; wait", trap, name, name, name)), name
	}
	run := func(command program.Command, started string) error {
		ctx, cancel := context.WithCancelCause(rig.Context(t))
		done := make(chan error, 1)
		go func() { _, err := own.Run(ctx, command); done <- err }()
		eventually(t, func() bool { _, err := os.Stat(started); return err == nil })
		cancel(errors.New("the caller has gone"))
		err := <-done
		text, readErr := os.ReadFile(started)
		rig.Must(t, readErr)
		child, convErr := strconv.Atoi(strings.TrimSpace(string(text)))
		rig.Must(t, convErr)
		eventually(t, func() bool { return !running(child) })
		return err
	}
	command, started := script("true")
	if err := run(command, started); err == nil || !strings.Contains(err.Error(), "the caller has gone") {
		t.Errorf("ended: %v", err)
	}
	command, started = script("trap 'exit 0' TERM")
	if err := run(command, started); err != nil {
		t.Errorf("ended when its work was done: %v", err)
	}
	ctx, cancel := context.WithCancel(rig.Context(t))
	cancel()
	if _, err := own.Run(ctx, program.Command{Name: "true"}); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that has ended: %v", err)
	}
}

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come")
		}
	}
}

// running reports whether a process runs; one that waits to be waited for does not.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A program of the host is found, and runs, where the host's are.
func TestHost(t *testing.T) {
	rig.RequireRoot(t)
	host := exec.CommandContext(rig.Context(t), "sleep", "infinity")
	host.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC}
	rig.Must(t, host.Start())
	t.Cleanup(func() { host.Process.Kill(); host.Wait() })
	pid := strconv.Itoa(host.Process.Pid)
	other := filepath.Join(t.TempDir(), "other")
	rig.Must(t, os.WriteFile(other, []byte("#!/bin/sh\necho the other\nreadlink /proc/self/ns/mnt /proc/self/ns/ipc\n"), 0o700))
	enter := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(rig.Context(t), "nsenter", append([]string{"-t", pid, "-m"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	enter("mount", "--make-rprivate", "/")
	path, err := filepath.EvalSymlinks("/usr/bin/true")
	rig.Must(t, err)
	enter("mount", "--bind", other, path)

	command := program.Command{Name: "true"}
	stdout, err := program.New("/proc/"+pid+"/ns/mnt").Run(rig.Context(t), command)
	rig.Must(t, err)
	want := "the other\n"
	for _, kind := range []string{"mnt", "ipc"} {
		link, err := os.Readlink("/proc/" + pid + "/ns/" + kind)
		rig.Must(t, err)
		want += link + "\n"
	}
	if string(stdout) != want {
		t.Errorf("the host's program says %q, want %q", stdout, want)
	}
	// The plugin is where it was.
	if stdout, err := own.Run(rig.Context(t), command); err != nil || len(stdout) != 0 {
		t.Errorf("the own program says %q, %v", stdout, err)
	}
	rig.Must(t, os.Remove(other)) // Only its name.
	if _, err := program.New("/proc/0/ns/mnt").Run(rig.Context(t), command); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a host that is not there: %v", err)
	}
}
