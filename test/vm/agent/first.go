package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// runFirst is what the first process does where systemd is not: it mounts what
// belongs to a running system, starts the agent, and takes the orphans in.
func runFirst() error {
	mounts := []mount{
		{"devpts", "/dev/pts"},
		{"tmpfs", "/dev/shm"},
		{"tmpfs", "/tmp"},
		{"cgroup2", "/sys/fs/cgroup"},
	}
	for _, m := range mounts {
		if err := m.make(); err != nil {
			return err
		}
	}
	agent := exec.Command(self, "serve")
	agent.Stdout, agent.Stderr, agent.Env = os.Stdout, os.Stderr, environment
	if err := agent.Start(); err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == agent.Process.Pid:
			return fmt.Errorf("%s has ended", self)
		}
	}
}

// modules are those that nothing asks for by itself where udev does not run.
var modules = []string{
	"virtio_console", "virtio_scsi", "sd_mod", "nvme", "loop", "dm_mod", "raid1", "xfs", "btrfs", "vfat", "overlay",
}

// lvmWithoutUdev has lvm make the nodes of its devices, as Debian's would leave to udev
// (lvm.conf(5)).
const lvmWithoutUdev = "activation {\n\tudev_sync = 0\n\tudev_rules = 0\n}\n"

// prepare loads the kernel's drivers, and starts udev where it is wanted.
func prepare() error {
	if err := run("modprobe", append([]string{"-a"}, modules...)...); err != nil {
		return err
	}
	if has("init=systemd") {
		return nil
	}
	if err := run("busybox", "ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	if !has("udev") {
		return os.WriteFile("/etc/lvm/lvmlocal.conf", []byte(lvmWithoutUdev), 0o644)
	}
	for _, command := range [][]string{
		{"/lib/systemd/systemd-udevd", "--daemon"},
		{"udevadm", "trigger", "--type=subsystems", "--action=add"},
		{"udevadm", "trigger", "--type=devices", "--action=add"},
		{"udevadm", "settle"},
	} {
		if err := run(command[0], command[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, args ...string) error {
	command := exec.Command(name, args...)
	command.Stdout, command.Stderr, command.Env = os.Stderr, os.Stderr, environment
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
