package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// machine is what would be a computer of its own elsewhere: a tree of processes
// in PID, mount, network, UTS and IPC namespaces of their own. When its first
// process ends, the kernel ends the others, and takes away their mounts,
// interfaces and packet filters.
type machine struct {
	cluster *cluster
	name    string
	address string
	// pods is the network of its pods. The control plane has none.
	pods string
}

// configDir is where a machine has its programs' configuration, and
// binaryDir the programs.
const (
	configDir = "/var/lib/cluster"
	binaryDir = "/var/lib/cluster/bin"
)

func (c *cluster) control() machine {
	return machine{cluster: c, name: "control", address: controlAddress}
}

func (c *cluster) nodes() []machine {
	return []machine{
		{cluster: c, name: "node-1", address: "10.201.0.11", pods: "10.201.17.0/24"},
		{cluster: c, name: "node-2", address: "10.201.0.12", pods: "10.201.18.0/24"},
	}
}

func (c *cluster) machines() []machine { return append([]machine{c.control()}, c.nodes()...) }

func (c *cluster) machine(name string) (machine, error) {
	machines := c.machines()
	i := slices.IndexFunc(machines, func(m machine) bool { return m.name == name })
	if i < 0 {
		return machine{}, fmt.Errorf("no machine %s; there are control, node-1 and node-2\n%s", name, usage)
	}
	return machines[i], nil
}

func (m machine) isNode() bool { return m.pods != "" }

// path is the path on the host of a file of the machine. What is below /var there
// is below /var on the machine.
func (m machine) path(names ...string) string {
	return m.cluster.path(append([]string{m.name}, names...)...)
}

func (m machine) pidFile() string { return m.path("run", "machine.pid") }

// log is where a program of the machine logs to.
func (m machine) log(program string) string {
	return m.cluster.path("logs", m.name, program+".log")
}

// boot starts the machine without any program, unless it runs.
func (m machine) boot(ctx context.Context) error {
	if _, err := readID(m.pidFile()); err == nil {
		return nil
	}
	// It may have ended by itself, and left what is in no namespace.
	if err := m.halt(ctx); err != nil {
		return err
	}
	if err := m.makeDisk(ctx); err != nil {
		return err
	}
	log, err := appendTo(m.log("machine"))
	if err != nil {
		return err
	}
	defer log.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	command := exec.Command("/proc/self/exe", machineCommand, m.path(), m.name, m.cluster.binaries())
	command.Stdout, command.Stderr = log, log
	command.ExtraFiles = []*os.File{tell}
	command.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	err = command.Start()
	tell.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	go command.Wait() // So that it does not stay a zombie as long as this process runs.
	// It closes its end by ending, too.
	if n, _ := ready.Read(make([]byte, 1)); n == 0 {
		return fmt.Errorf("%s did not start; see %s", m.name, m.log("machine"))
	}
	return m.connect(ctx)
}

// makeDisk makes the disk of a node, once: a file with XFS, where snapshots share
// data. Nodes need a filesystem each so that one has no room when another has.
func (m machine) makeDisk(ctx context.Context) error {
	if !m.isNode() {
		return nil
	}
	if _, err := os.Stat(m.disk()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(m.path(), 0o755); err != nil {
		return err
	}
	unfinished := m.disk() + ".unfinished"
	if err := errors.Join(os.WriteFile(unfinished, nil, 0o600), os.Truncate(unfinished, diskSize)); err != nil {
		return err
	}
	if _, err := output(exec.CommandContext(ctx, "mkfs.xfs", "-q", "-m", "reflink=1", unfinished)); err != nil {
		return err
	}
	return os.Rename(unfinished, m.disk())
}

// diskSize is how much a node has for volumes, in bytes. The file is sparse.
const diskSize = 16 << 30

func (m machine) disk() string { return m.path("disk.img") }

// halt ends the machine as when its power is cut, and takes away what is in no
// namespace: loop devices and cgroups.
func (m machine) halt(ctx context.Context) error {
	if err := end(ctx, m.pidFile(), syscall.SIGKILL); err != nil {
		return fmt.Errorf("halt %s: %w", m.name, err)
	}
	if !m.isNode() {
		return nil
	}
	if err := clearLoops(ctx, m.disk()); err != nil {
		return err
	}
	return removeCgroups(ctx, m.cgroup())
}

// reboot keeps what is on the disks: /var. /run, mounts and loop devices are gone.
func (m machine) reboot(ctx context.Context) error {
	if err := m.halt(ctx); err != nil {
		return err
	}
	return m.start(ctx)
}

// start starts what does not run yet.
func (m machine) start(ctx context.Context) error {
	if err := m.boot(ctx); err != nil {
		return err
	}
	programs := m.controlPlane()
	if m.isNode() {
		if err := m.configureNode(); err != nil {
			return fmt.Errorf("configure %s: %w", m.name, err)
		}
		programs = m.nodePrograms()
	}
	for _, p := range programs {
		if err := m.launch(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// enter is the beginning of a command line that runs the rest on the machine.
func (m machine) enter() ([]string, error) {
	id, err := readID(m.pidFile())
	if err != nil {
		return nil, fmt.Errorf("%s does not run: %w", m.name, err)
	}
	return []string{"nsenter", "--target", fmt.Sprint(id.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"}, nil
}

// command is a command that runs on the machine.
func (m machine) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	enter, err := m.enter()
	if err != nil {
		return nil, err
	}
	args = append(enter, args...)
	return exec.CommandContext(ctx, args[0], args[1:]...), nil
}

// exec becomes a command on the machine.
func (m machine) exec(args []string) error {
	enter, err := m.enter()
	if err != nil {
		return err
	}
	if args[0] == "--" {
		args = args[1:]
	}
	nsenter, err := exec.LookPath(enter[0])
	if err != nil {
		return err
	}
	return syscall.Exec(nsenter, append(enter, args...), os.Environ())
}

// until asks again and again until something is so.
func until(ctx context.Context, what string, limit time.Duration, is func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := is()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w: %w", what, ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func appendTo(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}
