package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestWithLibraries sees that the programs need no more than what is found, and that
// the shell starts dd and not something of its own.
func TestWithLibraries(t *testing.T) {
	entries, err := withLibraries(context.Background(), "/bin/dd", "/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, entry := range entries {
		path := filepath.Join(root, entry.name)
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is there twice", entry.name)
		}
		if err := writeFile(path, entry.content); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command("/bin/sh", "-c", "echo with-its-libraries | dd oflag=nocache status=none")
	command.Dir, command.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: root}
	if printed, err := output(command); err != nil || string(printed) != "with-its-libraries\n" {
		t.Errorf("printed %q, %v", printed, err)
	}
}
