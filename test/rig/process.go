package rig

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// built are the plugins that were built for the tests of this package, by their tags.
var (
	buildLock sync.Mutex
	built     = map[string]string{}
)

// Build builds the plugin with the given build tags, once, and returns its path. In a
// guest machine it is there (ProgramInGuest).
func Build(t testing.TB, tags string) string {
	t.Helper()
	if machine.Inside() {
		return ProgramInGuest(tags)
	}
	buildLock.Lock()
	defer buildLock.Unlock()
	if binary, is := built[tags]; is {
		return binary
	}
	// For the next test it stays, in the temporary directory of Main; without one it goes
	// with its test.
	dir := t.TempDir()
	if temporary != "" {
		dir = filepath.Join(temporary, "plugin-"+tags)
		Must(t, os.MkdirAll(dir, 0o755))
	}
	binary := filepath.Join(dir, "rawblock-csi")
	// With the flags of make build, which then has compiled all of it.
	command := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-tags", tags, "-o", binary,
		"github.com/rawblock-csi/rawblock-csi/cmd/rawblock-csi")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, output)
	}
	if temporary != "" {
		built[tags] = binary
	}
	return binary
}

// Process is the plugin as a process of its own.
type Process struct {
	*Plugin
	command *exec.Cmd
	log     bytes.Buffer
}

// Start runs the plugin's binary with a kubelet directory, a state directory and
// additional environment variables. Volumes may name loop devices; there are no
// pools. It is killed with the test.
func Start(t testing.TB, binary, kubeletDir, stateDir string, environment ...string) *Process {
	t.Helper()
	return StartWithPools(t, "[]", binary, kubeletDir, stateDir, environment...)
}

// StartWithPools does the same with the pools of a configuration.
func StartWithPools(t testing.TB, pools, binary, kubeletDir, stateDir string, environment ...string) *Process {
	t.Helper()
	dir := t.TempDir()
	config, socket := filepath.Join(dir, "config.yaml"), filepath.Join(kubeletDir, "csi.sock")
	Must(t, os.WriteFile(config, []byte("devices: {allow: ["+strings.Join(DevicePatterns(), ", ")+"]}\npools: "+pools+"\n"), 0o600))
	process := &Process{command: exec.Command(binary, //nolint:noctx // Kill ends it, at the point that the test wants.
		"--endpoint="+socket, "--node-id="+NodeID, "--kubelet-dir="+kubeletDir, "--state-dir="+stateDir, "--config="+config)}
	process.command.Env = append(os.Environ(), environment...)
	process.command.Stderr = &process.log
	Must(t, process.command.Start())
	t.Cleanup(func() { process.Kill() })
	process.Plugin = Connect(t, socket, kubeletDir)
	return process
}

// Pid is the number of its process.
func (p *Process) Pid() int { return p.command.Process.Pid }

// Runs reports whether the plugin has not ended.
func (p *Process) Runs() bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return false
	}
	// One that has ended and was not waited for is a zombie (proc_pid_stat(5)). It may
	// also be so young that it has no command line yet.
	state := text[bytes.LastIndexByte(text, ')')+1:]
	return !bytes.HasPrefix(state, []byte(" Z")) && !bytes.HasPrefix(state, []byte(" X"))
}

// WaitStopped waits until the plugin has stopped itself (crashpoint).
func (p *Process) WaitStopped(t testing.TB) {
	t.Helper()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(p.Pid(), &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("the plugin has not stopped: %v, %v", status, err)
	}
}

// Continue has a plugin that has stopped go on.
func (p *Process) Continue(t testing.TB) {
	t.Helper()
	Must(t, p.command.Process.Signal(syscall.SIGCONT))
}

// Kill ends the plugin as kill -9 does, if it still runs, and returns what it logged.
func (p *Process) Kill() string {
	p.command.Process.Kill() //nolint:errcheck // It may have ended by itself.
	p.command.Wait()         //nolint:errcheck // It says that it was killed.
	return p.log.String()
}

// Stop ends the plugin with SIGTERM and returns how it ended.
func (p *Process) Stop() error {
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.command.Wait()
}
