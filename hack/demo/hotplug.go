package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
)

// diskSize is the size of the disk in bytes.
const diskSize = 64 << 20

// disk is a loop device that stands for a disk.
type disk struct {
	path   string
	number linux.DeviceNumber
}

// hotplugStory is the demo of hot attach: the same with a container of cgroup v1, if
// the machine has that, and of v2.
func (d *demo) hotplugStory() []step {
	story := []step{
		{"Make a disk: a loop device over a file stands for it.", d.makeDisk},
		{"Start the plugin. It makes a socket for root, by which rawblockctl reaches it.", d.startPluginForDisks},
	}
	_, err := os.Stat("/sys/fs/cgroup/devices")
	if err == nil {
		story = append(story, d.hotplugSteps("cgroup v1", false)...)
	}
	return append(story, d.hotplugSteps("cgroup v2 alone, where a BPF program decides on devices", true)...)
}

func (d *demo) hotplugSteps(where string, v2 bool) []step {
	return []step{
		{"Start a container that has no disk, on " + where + ".", func(ctx context.Context) error { return d.startRunning(ctx, v2) }},
		{"It makes a node for the disk by itself, which it may; but it cannot open it.", d.tryOwnNode},
		{"What would be done to give it the disk?", d.planAttach},
		{"Attach the disk while the container runs.", d.attachDisk},
		{"Inside, it is there: the container writes to it, and reads it.", d.useDisk},
		{"The bytes are on the disk.", d.lookAtDisk},
		{"A program in the container holds the disk open. It is not released under it.", d.tryToDetach},
		{"The program has ended: the disk is taken away.", d.detachDisk},
		{"Inside, it is gone, and the container's own node cannot be opened any more.", d.tryAgain},
	}
}

func (d *demo) makeDisk(ctx context.Context) error {
	image := d.path("disk")
	d.did("truncate --size=%d %s", diskSize, image)
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, diskSize)); err != nil {
		return err
	}
	d.did("losetup --find --show %s", image)
	output, err := exec.CommandContext(ctx, "losetup", "--find", "--show", image).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	d.disk.path = strings.TrimSpace(string(output))
	d.saw("%s", d.disk.path)
	d.later(func(ctx context.Context) error { return d.command(ctx, "losetup", "--detach", d.disk.path) })
	device, err := oci.DeviceAt(d.disk.path, attachedPath)
	d.disk.number = device.Number
	return err
}

func (d *demo) startPluginForDisks(ctx context.Context) error {
	if err := d.startPluginWith(ctx, "pools: []"); err != nil {
		return err
	}
	info, err := os.Stat(d.adminSocket())
	if err != nil {
		return err
	}
	d.did("stat --format=%%A %s", d.adminSocket())
	d.saw("%s", info.Mode())
	return nil
}

func (d *demo) adminSocket() string { return d.path("state", "admin.sock") }

func (d *demo) startRunning(ctx context.Context, v2 bool) error {
	name := "on-v1"
	if v2 {
		name = "on-v2"
	}
	if err := os.Mkdir(d.path(name), 0o755); err != nil {
		return err
	}
	d.did("runc run --detach --bundle %s", d.path(name))
	container, err := oci.Start(ctx, oci.Config{Dir: d.path(name), Prefix: filepath.Base(d.dir), CgroupV2: v2})
	if err != nil {
		return err
	}
	d.later(func(ctx context.Context) error {
		d.did("runc delete --force %s", container.Name)
		return container.Delete(ctx)
	})
	d.saw("runs as container %s", container.Name)
	d.running = pod{name, container}
	return d.inside(ctx, d.running, "echo /dev/*", "/dev/")
}

const (
	// attachedPath is where the disk is attached, and ownPath where the container
	// makes a node by itself.
	attachedPath = "/dev/xvdb"
	ownPath      = "/dev/own"
)

func (d *demo) tryOwnNode(ctx context.Context) error {
	mknod := fmt.Sprintf("mknod %s b %d %d", ownPath, d.disk.number.Major, d.disk.number.Minor)
	if err := d.inside(ctx, d.running, mknod, ""); err != nil {
		return err
	}
	return d.wantRefused(ctx, "head -c 1 "+ownPath, "Operation not permitted")
}

// wantRefused runs a command in the container that must fail, and say why.
func (d *demo) wantRefused(ctx context.Context, command, why string) error {
	d.did("in %s: %s", d.running.name, command)
	said, err := d.running.Exec(ctx, "sh", "-c", command)
	d.saw("%s", said)
	if err == nil || !strings.Contains(said, why) {
		return fmt.Errorf("it did not fail with %q: %v", why, err) //nolint:errorlint // There may be none.
	}
	return nil
}

func (d *demo) planAttach(ctx context.Context) error {
	arguments, err := d.attachArguments(ctx)
	if err != nil {
		return err
	}
	return d.ctl(ctx, append(arguments, "--dry-run")...)
}

func (d *demo) attachDisk(ctx context.Context) error {
	arguments, err := d.attachArguments(ctx)
	if err != nil {
		return err
	}
	return errors.Join(d.ctl(ctx, arguments...), d.ctl(ctx, "list"))
}

func (d *demo) attachArguments(ctx context.Context) ([]string, error) {
	pid, err := d.running.PID(ctx)
	return []string{"attach", "--device", d.disk.path, "--pid", fmt.Sprint(pid), "--path", attachedPath}, err
}

// ctl runs rawblockctl, which must succeed.
func (d *demo) ctl(ctx context.Context, arguments ...string) error {
	_, err := d.tryCtl(ctx, arguments...)
	return err
}

func (d *demo) tryCtl(ctx context.Context, arguments ...string) (said string, err error) {
	d.did("rawblockctl %s", strings.Join(arguments, " "))
	command := exec.CommandContext(ctx, d.tool, append([]string{"--socket", d.adminSocket()}, arguments...)...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output, err := command.CombinedOutput()
	said = strings.TrimSpace(string(output))
	d.saw("%s", said)
	if err != nil {
		return said, fmt.Errorf("rawblockctl: %w: %s", err, said)
	}
	return said, nil
}

func (d *demo) useDisk(ctx context.Context) error {
	command := fmt.Sprintf("echo 'hello from %s' | dd of=%s conv=fsync,notrunc status=none; head -n 1 %s", d.running.name, attachedPath, attachedPath)
	return errors.Join(d.inside(ctx, d.running, "ls -l "+attachedPath, "brw"),
		d.inside(ctx, d.running, command, "hello from "+d.running.name))
}

func (d *demo) lookAtDisk(context.Context) error {
	d.did("head -n 1 %s", d.path("disk"))
	line, _, _ := strings.Cut(content(d.path("disk")), "\n")
	d.saw("%s", line)
	if want := "hello from " + d.running.name; line != want {
		return fmt.Errorf("the disk has %q, not %q", line, want)
	}
	return nil
}

func (d *demo) tryToDetach(ctx context.Context) error {
	hold := fmt.Sprintf("sleep infinity <%s >/dev/null 2>&1 & echo $!", attachedPath)
	d.did("in %s: %s", d.running.name, hold)
	holder, err := d.running.Exec(ctx, "sh", "-c", hold)
	if err != nil {
		return err
	}
	d.saw("%s", holder)
	id, err := d.attachmentID(ctx)
	if err != nil {
		return err
	}
	if _, err := d.tryCtl(ctx, "detach", id); err == nil {
		return errors.New("the disk was released while a program had it open")
	}
	return d.inside(ctx, d.running, "kill "+holder, "")
}

func (d *demo) attachmentID(ctx context.Context) (string, error) {
	output, err := exec.CommandContext(ctx, d.tool, "--socket", d.adminSocket(), "list", "-o", "json").Output()
	if err != nil {
		return "", fmt.Errorf("rawblockctl list: %w", err)
	}
	var attachments []struct{ ID string }
	if err := json.Unmarshal(output, &attachments); err != nil || len(attachments) != 1 {
		return "", fmt.Errorf("expected one attachment, found %s", output)
	}
	return attachments[0].ID, nil
}

func (d *demo) detachDisk(ctx context.Context) error {
	id, err := d.attachmentID(ctx)
	if err != nil {
		return err
	}
	return errors.Join(d.ctl(ctx, "detach", "--wait", id), d.ctl(ctx, "list"))
}

func (d *demo) tryAgain(ctx context.Context) error {
	return errors.Join(d.wantRefused(ctx, "head -n 1 "+attachedPath, "No such file"),
		d.wantRefused(ctx, "head -c 1 "+ownPath, "Operation not permitted"))
}
