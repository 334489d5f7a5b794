package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/test/oci"
)

const (
	// devicePath is what the pods' volumeDevices ask for.
	devicePath = "/dev/xvda"
	message    = "hello from pod-1"
	second     = "hello again"
)

// pod is a container with the volume.
type pod struct {
	name string
	*oci.Container
}

func (d *demo) startWriter(ctx context.Context) (err error) {
	d.writer, err = d.startPod(ctx, "pod-1")
	return err
}

func (d *demo) startReader(ctx context.Context) (err error) {
	d.reader, err = d.startPod(ctx, "pod-2")
	return err
}

func (d *demo) startPod(ctx context.Context, name string) (pod, error) {
	target, bundle := d.target(name), d.path(name)
	device, err := oci.DeviceAt(target, devicePath)
	if err != nil {
		return pod{}, err
	}
	d.did("stat %s", target)
	d.saw("block device %s; so into config.json go", device.Number)
	d.saw("linux.devices:           %s", toJSON(device.Node()))
	d.saw("linux.resources.devices: %s", toJSON(device.Rule()))
	if err := os.Mkdir(bundle, 0o755); err != nil {
		return pod{}, err
	}
	d.did("runc run --detach --bundle %s", bundle)
	container, err := oci.Start(ctx, oci.Config{
		Folder: bundle, Prefix: filepath.Base(d.folder), Devices: []oci.Device{device},
	})
	if err != nil {
		return pod{}, err
	}
	d.later(func(ctx context.Context) error {
		d.did("runc delete --force %s", container.Name)
		return container.Delete(ctx)
	})
	d.saw("runs as container %s", container.Name)
	return pod{name, container}, nil
}

func (d *demo) useDisk(ctx context.Context) error {
	if err := d.inside(ctx, d.writer, "ls -l "+devicePath, "brw"); err != nil {
		return err
	}
	if err := d.inside(ctx, d.writer, write(message, 0), ""); err != nil {
		return err
	}
	return d.inside(ctx, d.writer, read(0), message)
}

func (d *demo) lookAtDisk(context.Context) error { return d.wantOnDisk(0, message) }

func (d *demo) tryToWrite(ctx context.Context) error {
	if err := d.inside(ctx, d.reader, read(0), message); err != nil {
		return err
	}
	command := write("not from pod-2", 0)
	d.did("in pod-2: %s", command)
	said, err := d.reader.Exec(ctx, "sh", "-c", command)
	if err == nil {
		return errors.New("pod-2 could write to a read-only volume")
	}
	d.saw("%s", said)
	return d.wantOnDisk(0, message)
}

func (d *demo) writeAgain(ctx context.Context) error {
	if err := d.inside(ctx, d.writer, write(second, 1), ""); err != nil {
		return err
	}
	return d.wantOnDisk(1, second)
}

// inside runs a command in a pod; what it prints must begin with want.
func (d *demo) inside(ctx context.Context, pod pod, command, want string) error {
	d.did("in %s: %s", pod.name, command)
	said, err := pod.Exec(ctx, "sh", "-c", command)
	if err != nil {
		return err
	}
	if said != "" {
		d.saw("%s", said)
	}
	if !strings.HasPrefix(said, want) {
		return fmt.Errorf("it printed %q, not %q", said, want)
	}
	return nil
}

// write is the command that writes text to a block of the device, and waits
// until it is on the disk.
func write(text string, block int) string {
	return fmt.Sprintf("echo %s | dd of=%s bs=%d seek=%d conv=fsync status=none", text, devicePath, blockSize, block)
}

// read is the command that reads the line that a block of the device begins with.
func read(block int) string {
	return fmt.Sprintf("dd if=%s bs=%d skip=%d count=1 status=none | head -n 1", devicePath, blockSize, block)
}

func toJSON(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
