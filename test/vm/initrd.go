package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// agentPackage is the first program of a guest.
const agentPackage = "github.com/rawblock-csi/rawblock-csi/test/vm/agent"

// makeInitrd makes the initial RAM disk in a directory: the agent, and the modules
// that it loads.
func makeInitrd(ctx context.Context, base image, dir string) (string, error) {
	root := filepath.Join(dir, "initrd")
	for _, name := range []string{"dev", "proc", "sys", "root"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.CopyFS(filepath.Join(root, "modules"), os.DirFS(base.modules)); err != nil {
		return "", err
	}
	if err := build(ctx, filepath.Join(root, "init"), "build", agentPackage); err != nil {
		return "", err
	}
	var names []string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		name, relErr := filepath.Rel(root, path)
		names = append(names, name)
		if err != nil {
			return err
		}
		return relErr
	})
	if err != nil {
		return "", err
	}
	pack := exec.CommandContext(ctx, "cpio", "--quiet", "-o", "-H", "newc")
	pack.Dir, pack.Stdin = root, strings.NewReader(strings.Join(names, "\n"))
	archive, err := output(pack)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "initrd.cpio")
	return path, os.WriteFile(path, archive, 0o600)
}

// build builds a static program with a command of go, such as build.
func build(ctx context.Context, program string, args ...string) error {
	args = append(args[:1:1], append([]string{"-trimpath", "-ldflags=-s -w", "-o", program}, args[1:]...)...)
	command := exec.CommandContext(ctx, "go", args...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if _, err := output(command); err != nil {
		return fmt.Errorf("build %s: %w", args[len(args)-1], err)
	}
	return nil
}
