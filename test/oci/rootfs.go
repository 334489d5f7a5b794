package oci

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// applets are the commands of busybox that a container has.
var applets = []string{"cat", "dd", "head", "ln", "ls", "mkdir", "mknod", "mv", "rm", "sh", "sleep", "stat"}

// makeRootfs makes a root filesystem at path.
func makeRootfs(path string) error {
	busybox, err := findBusybox()
	if err != nil {
		return err
	}
	for _, dir := range []string{"bin", "dev", "proc", "mnt"} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o755); err != nil {
			return err
		}
	}
	bin := filepath.Join(path, "bin")
	if err := copyProgram(busybox, filepath.Join(bin, "busybox")); err != nil {
		return err
	}
	for _, applet := range applets {
		if err := os.Symlink("busybox", filepath.Join(bin, applet)); err != nil {
			return err
		}
	}
	return nil
}

// findBusybox returns the path of a busybox that needs no libraries, of which
// the root filesystem has none.
func findBusybox() (string, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("%w; install busybox-static", err)
	}
	program, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("look into %s: %w", path, err)
	}
	defer program.Close()
	for _, part := range program.Progs {
		if part.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s needs libraries; install busybox-static in its place", path)
		}
	}
	return path, nil
}

func copyProgram(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, source); err != nil {
		target.Close() //nolint:errcheck,gosec // The first error counts.
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return target.Close()
}
