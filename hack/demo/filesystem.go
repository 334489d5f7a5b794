package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// filesystemSize is the size in bytes of the file that the filesystem of the pool
// is in. It is sparse: only what is written to it takes space on this machine.
const filesystemSize = 1 << 30

// makeFilesystem gives the pool a filesystem of its own, on which files can share
// their data, whatever the temporary directory is on.
func (d *demo) makeFilesystem(ctx context.Context) error {
	image, dir := d.path("disk"), d.pool()
	d.did("truncate --size=%d %s", filesystemSize, image)
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, filesystemSize); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := d.command(ctx, "mkfs.xfs", "-q", image); err != nil {
		return err
	}
	d.later(d.unmount)
	return d.command(ctx, "mount", "-t", "xfs", "-o", "loop", image, dir)
}

// unmount also ends the loop device that mount(8) has made.
func (d *demo) unmount(ctx context.Context) error {
	if strings.Contains(content("/proc/self/mountinfo"), " "+d.pool()+" ") {
		return d.command(ctx, "umount", d.pool())
	}
	return nil
}

// pool is the directory of the pool.
func (d *demo) pool() string { return d.path("files") }

// command runs a program of this machine.
func (d *demo) command(ctx context.Context, name string, args ...string) error {
	command := exec.CommandContext(ctx, name, args...)
	// Ctrl-C is for the demo, which goes on to the end of the step.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.did("%s", strings.Join(command.Args, " "))
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, output)
	}
	return nil
}
