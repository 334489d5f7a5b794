package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

// beMachine is what the first process of a machine does, in new namespaces: it
// makes the machine's own view of the filesystem, and then takes away what ended.
func beMachine(dir, name, binaries string) error {
	// /proc still is the host's, and the only place that knows this process's number there.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return err
	}
	if err := writeID(filepath.Join(dir, "run", "machine.pid"), self); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the name: %w", err)
	}
	if err := mountAll(dir, binaries); err != nil {
		return err
	}
	// The kernel then takes away the processes whose parents ended before them.
	signal.Ignore(syscall.SIGCHLD)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	ready := os.NewFile(3, "ready")
	if _, err := ready.WriteString("\n"); err != nil {
		return err
	}
	ready.Close()
	<-ended
	return nil
}

// mountAll gives the machine /var, /run and /tmp of its own: that is all where
// containerd, kubelet, their plugins and the plugin of this project write to, so
// that each has its usual paths on every machine. The rest is the host's.
func mountAll(dir, binaries string) error {
	variable := filepath.Join(dir, "var")
	if err := makeDirs(variable); err != nil {
		return err
	}
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV); err != nil {
		return err
	}
	// Neither might be found once /var and /tmp are covered.
	if err := mount(binaries, filepath.Join(dir, binaryDir), "", syscall.MS_BIND); err != nil {
		return err
	}
	if err := mountDisk(filepath.Join(dir, "disk.img"), filepath.Join(variable, "lib/rawblock-csi")); err != nil {
		return err
	}
	for _, step := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{variable, "/var", "", syscall.MS_BIND | syscall.MS_REC},
		{"tmpfs", "/tmp", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV},
		{"proc", "/proc", "proc", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC},
		// As systemd has it: mounts in a container with mountPropagation: Bidirectional
		// must reach the machine. The host has left this group above.
		{"", "/", "", syscall.MS_REC | syscall.MS_SHARED},
	} {
		if err := mount(step.source, step.target, step.kind, step.flags); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr) error {
	if err := syscall.Mount(source, target, kind, flags, ""); err != nil {
		return fmt.Errorf("mount %q on %s: %w", source, target, err)
	}
	return nil
}

func makeDirs(variable string) error {
	errs := []error{}
	for _, name := range []string{"lib/cluster/bin", "lib/kubelet", "lib/containerd", "lib/rawblock-csi", "log", "tmp", "cache"} {
		errs = append(errs, os.MkdirAll(filepath.Join(variable, name), 0o755))
	}
	if err := os.Symlink("/run", filepath.Join(variable, "run")); !errors.Is(err, fs.ErrExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mountDisk mounts the node's disk by a loop device that ends with the last mount.
func mountDisk(disk, target string) error {
	if _, err := os.Stat(disk); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := output(exec.Command("mount", "-t", "xfs", "-o", "loop,discard", disk, target))
	return err
}
