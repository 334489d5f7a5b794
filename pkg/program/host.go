package program

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// path is where programs are looked for: the directories of the Filesystem Hierarchy
// Standard 3.0 for those of the system.
const path = "/usr/sbin:/usr/bin:/sbin:/bin"

// HostNamespace is the mount namespace of process 1: the host's where the caller sees the
// processes of the host, and otherwise its own.
const HostNamespace = "/proc/1/ns/mnt"

// ErrNotInstalled says that the host has no such program.
var ErrNotInstalled = errors.New("not installed on this node")

// ExitError says that a program ended with a code other than 0.
type ExitError struct {
	// Name is the name of the program.
	Name string
	// Code is its exit code.
	Code int
	// Stderr is the end of what it wrote to its standard error.
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s ended with code %d: %s", e.Name, e.Code, e.Stderr)
}

// Command is a program and what it gets.
type Command struct {
	// Name is the name of the program, without a directory.
	Name string
	// Args are its arguments; never a secret.
	Args []string
	// Stdin is its standard input, which may be a secret.
	Stdin []byte
	// Environment is what it has of it beside LC_ALL=C and PATH, as NAME=VALUE.
	Environment []string
}

// String returns the command for a message, without its standard input.
func (c Command) String() string { return strings.Join(append([]string{c.Name}, c.Args...), " ") }

// Host runs the programs of the host. Its methods may be called concurrently.
type Host struct {
	mountNamespace string
}

// New returns the host whose mount namespace is at a path, such as HostNamespace; empty:
// the plugin's own. With the mount namespace comes the IPC namespace beside it:
// device-mapper tools and udev tell each other by semaphores there that a device is ready.
func New(mountNamespace string) *Host { return &Host{mountNamespace} }

// Run runs a program to its end and returns what it wrote to its standard output.
//
// When ctx ends first, the program is told to end (SIGTERM), and killed where it
// does not: together with all that it started, but for what left its process group.
// A program that had changed all it should when it was told to end has not failed.
//
// Errors: ErrNotInstalled; *ExitError; that of ctx.
func (h *Host) Run(ctx context.Context, c Command) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	p := newProcess(ctx, c)
	if err := h.start(p); err != nil {
		return nil, fmt.Errorf("run %s: %w", c.Name, err)
	}
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	return p.stdout.kept.Bytes(), nil
}

// start starts a process in the namespaces of the host.
func (h *Host) start(p *process) error {
	if h.mountNamespace == "" {
		return p.start()
	}
	var namespaces []linux.Descriptor
	for _, namespace := range []string{h.mountNamespace, filepath.Join(filepath.Dir(h.mountNamespace), "ipc")} {
		file, err := os.Open(namespace)
		if err != nil {
			return fmt.Errorf("find the namespaces of the host, for which the plugin's pod needs hostPID: true: %w", err)
		}
		defer file.Close() //nolint:errcheck // Nothing was written.
		namespaces = append(namespaces, file)
	}
	return linux.InNamespaces(namespaces, p.start)
}

// find returns the path of a program.
func find(name string) (string, error) {
	if name != filepath.Base(name) {
		return "", fmt.Errorf("%q is not the name of a program", name)
	}
	for _, dir := range filepath.SplitList(path) {
		found, err := exec.LookPath(filepath.Join(dir, name))
		if err == nil {
			return found, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%w: %s is in none of %s", ErrNotInstalled, name, path)
}
