package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// id is a process. Another one with the same number started at another time.
type id struct {
	pid     int
	started string
}

// errNotRunning is returned where the process of a file has ended, or there is no file.
var errNotRunning = errors.New("no such process")

// started is when a process started, in ticks since the kernel did (proc_pid_stat(5)).
func started(pid string) (string, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", err
	}
	// The second field is in brackets and can have anything in it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%s/stat has %d fields", pid, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return "", fmt.Errorf("process %s has ended: %w", pid, fs.ErrNotExist)
	}
	return fields[19], nil
}

func writeID(file, pid string) error {
	started, err := started(pid)
	if err != nil {
		return err
	}
	return writeFile(file, []byte(pid+" "+started))
}

// readID returns the process of a file, or errNotRunning.
func readID(file string) (id, error) {
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return id{}, errNotRunning
	}
	if err != nil {
		return id{}, err
	}
	pid, since, _ := strings.Cut(string(content), " ")
	number, err := strconv.Atoi(pid)
	if err != nil {
		return id{}, fmt.Errorf("%s: %w", file, err)
	}
	now, err := started(pid)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || err == nil && now != since {
		return id{}, errNotRunning
	}
	return id{pid: number, started: since}, err
}

// end signals the group of a file's process, and waits until all of it has ended.
func end(ctx context.Context, file string, signal syscall.Signal) error {
	id, err := readID(file)
	if errors.Is(err, errNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	// Each is the leader of a group.
	if err := syscall.Kill(-id.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal the group of process %d: %w", id.pid, err)
	}
	return until(ctx, fmt.Sprintf("process %d has ended", id.pid), time.Minute, func() error {
		if err := syscall.Kill(-id.pid, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("it runs: %v", err) //nolint:errorlint // Nil, mostly.
		}
		return nil
	})
}

// service is a program that runs on a machine as long as the machine does.
type service struct {
	name    string
	command []string
	// ready says whether it does its work.
	ready func(context.Context) error
}

func (m machine) servicePIDFile(name string) string { return m.path("run", name+".pid") }

// launch starts a service unless it runs, and waits until it is ready.
func (m machine) launch(ctx context.Context, s service) error {
	file := m.servicePIDFile(s.name)
	if _, err := readID(file); errors.Is(err, errNotRunning) {
		err = m.startService(s, file)
		if err != nil {
			return fmt.Errorf("start %s on %s: %w", s.name, m.name, err)
		}
	} else if err != nil {
		return err
	}
	return until(ctx, fmt.Sprintf("%s on %s is ready (it logs to %s)", s.name, m.name, m.log(s.name)), 2*time.Minute, func() error {
		if _, err := readID(file); err != nil {
			return err
		}
		return s.ready(ctx)
	})
}

func (m machine) startService(s service, file string) error {
	// It ends when it is told to, and not with a context.
	command, err := m.command(context.Background(), s.command...)
	if err != nil {
		return err
	}
	log, err := appendTo(m.log(s.name))
	if err != nil {
		return err
	}
	defer log.Close()
	command.Dir = "/"
	command.Stdout, command.Stderr = log, log
	// A session of its own is a group of its own, which nsenter's child is in too.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	command.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	if err := command.Start(); err != nil {
		return err
	}
	go command.Wait() // So that it does not stay a zombie as long as this process runs.
	return writeID(file, strconv.Itoa(command.Process.Pid))
}

// kill ends a service of the machine; its containers go on.
func (m machine) kill(ctx context.Context, name, signal string) error {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	number, ok := signals[signal]
	if !ok {
		return fmt.Errorf("signal %s: it must be TERM or KILL", signal)
	}
	if _, err := os.Stat(m.servicePIDFile(name)); err != nil {
		return fmt.Errorf("%s never ran on %s: %w", name, m.name, err)
	}
	return end(ctx, m.servicePIDFile(name), number)
}

// binary is the path of one of our programs on a machine.
func (m machine) binary(name string) string {
	return filepath.Join(binaryDir, filepath.Base(m.cluster.binary(name)))
}
