package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

const (
	// maxOutput is how many bytes a program may write to its standard output: a
	// report on some 20,000 logical volumes.
	maxOutput = 16 << 20
	// maxMessage is how many bytes of what it writes to its standard error are kept.
	maxMessage = 8 << 10
	// termGrace is how long a program that was told to end may take. lvm holds
	// signals back while devices are suspended, and must not be killed then.
	termGrace = 30 * time.Second
	// killGrace is how long the kernel may take to end a process that was killed.
	killGrace = 5 * time.Second
	// pipeGrace is how long what a program left behind may hold its output open.
	pipeGrace = 5 * time.Second
)

// process is a program that runs.
type process struct {
	command *exec.Cmd
	// name is the name of the program, text is the command for messages.
	name, text     string
	logger         klog.Logger
	stdout, stderr buffer
}

func newProcess(ctx context.Context, c Command) *process {
	p := &process{name: c.Name, text: c.String(), logger: klog.FromContext(ctx), stdout: buffer{most: maxOutput, fail: true}, stderr: buffer{most: maxMessage}}
	// How it ends when ctx does is the business of wait.
	p.command = exec.CommandContext(context.WithoutCancel(ctx), c.Name, c.Args...) //nolint:gosec // What is run is what callers name.
	p.command.Err = nil                                                            // It was looked for with the path of the plugin.
	p.command.Env = append([]string{"LC_ALL=C", "PATH=" + path}, c.Environment...)
	p.command.Dir = "/"
	p.command.Stdin = bytes.NewReader(c.Stdin)
	p.command.Stdout, p.command.Stderr = &p.stdout, &p.stderr
	p.command.WaitDelay = pipeGrace
	// A session of its own is a process group of its own, and has no terminal.
	p.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return p
}

// start starts it in the namespaces of this thread.
func (p *process) start() error {
	found, err := find(p.name)
	if err != nil {
		return err
	}
	p.command.Path = found
	return p.command.Start()
}

// wait waits for the end of the process, which it brings about where ctx ends.
func (p *process) wait(ctx context.Context) error {
	exited := make(chan error, 1)
	go func() { exited <- linux.AwaitExit(p.command.Process.Pid) }()
	select {
	case err := <-exited:
		return p.reap(err)
	case <-ctx.Done():
	}
	for _, stop := range []struct {
		signal syscall.Signal
		grace  time.Duration
	}{{syscall.SIGTERM, termGrace}, {syscall.SIGKILL, killGrace}} {
		if err := linux.SignalGroup(p.command.Process.Pid, stop.signal); err != nil {
			return err
		}
		timer := time.NewTimer(stop.grace)
		defer timer.Stop()
		select {
		case err := <-exited:
			if err = p.reap(err); err != nil {
				err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return err
		case <-timer.C:
		}
	}
	go func() { p.reap(<-exited) }() //nolint:errcheck,gosec // Nobody waits for it any more.
	return fmt.Errorf("%w: %s was killed and does not end, as when a disk does not answer: process %d", context.Cause(ctx), p.name, p.command.Process.Pid)
}

// reap ends what is left of the process group and returns how its leader ended.
func (p *process) reap(err error) error {
	if err != nil {
		return err
	}
	// Its leader was not waited for: the number of the group is its own still.
	if err := linux.SignalGroup(p.command.Process.Pid, syscall.SIGKILL); err != nil {
		return err
	}
	err = p.command.Wait()
	p.logger.V(4).Info("A program of the host has ended", "command", p.text, "state", p.command.ProcessState.String(), "stderr", p.message())
	var exit *exec.ExitError
	switch {
	case p.stdout.over:
		return fmt.Errorf("%s wrote more than %d bytes", p.name, maxOutput)
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // Of which the latter says that a daemon which it started holds its output.
		return nil
	case !errors.As(err, &exit):
		return fmt.Errorf("%s: %w", p.name, err)
	case exit.Exited():
		return &ExitError{p.name, exit.ExitCode(), p.message()}
	default:
		return fmt.Errorf("%s was ended by %s: %s", p.name, exit.ProcessState, p.message())
	}
}

func (p *process) message() string { return strings.TrimSpace(p.stderr.kept.String()) }

// buffer keeps what is written to it, but for what is too much: then it fails, or
// keeps the end.
type buffer struct {
	kept       bytes.Buffer
	most       int
	fail, over bool
}

func (b *buffer) Write(data []byte) (int, error) {
	n, _ := b.kept.Write(data) // It never fails.
	if over := b.kept.Len() - b.most; over > 0 {
		if b.fail {
			b.over = true
			return 0, io.ErrShortWrite // The program meets a closed pipe.
		}
		b.kept.Next(over)
	}
	return n, nil
}
