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
	later      = "pod-1 went on"
	farther    = "pod-1 has more"
	// bulk is how much more than the message pod-1 writes, in MiB.
	bulk = 16
	// blockSize is the logical block size of the volumes, in which the pods write:
	// the unit in which XFS shares data. Since Linux 6.14 it offers no direct I/O in
	// smaller ones for a file that shares some (xfs_report_dioalign).
	blockSize = 4096
	// readSize is the command that prints the size of the device in bytes.
	readSize = "busybox blockdev --getsize64 " + devicePath
)

// pod is a container with the volume.
type pod struct {
	name string
	*oci.Container
}

func (d *demo) startWriter(ctx context.Context) (err error) {
	d.writer, err = d.startPod(ctx, "pod-1", d.claim)
	return err
}

func (d *demo) startReader(ctx context.Context) (err error) {
	d.reader, err = d.startPod(ctx, "pod-2", d.restored)
	return err
}

func (d *demo) startPod(ctx context.Context, name string, v volume) (pod, error) {
	target, bundle := d.target(v, name), d.path(name)
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
		Dir: bundle, Prefix: filepath.Base(d.dir), Devices: []oci.Device{device},
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

func (d *demo) useVolume(ctx context.Context) error {
	if err := d.inside(ctx, d.writer, "ls -l "+devicePath, "brw"); err != nil {
		return err
	}
	if err := d.inside(ctx, d.writer, write(message, 0), ""); err != nil {
		return err
	}
	if err := d.inside(ctx, d.writer, read(0), message); err != nil {
		return err
	}
	return d.inside(ctx, d.writer, fmt.Sprintf("dd if=/dev/urandom of=%s bs=1M seek=1 count=%d conv=fsync status=none", devicePath, bulk), "")
}

func (d *demo) lookAtBytes(context.Context) error { return d.wantInFile(d.claim, 0, message) }

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
	return d.wantInFile(d.restored, 0, message)
}

func (d *demo) writeOver(ctx context.Context) error {
	if err := d.inside(ctx, d.writer, write(later, 0), ""); err != nil {
		return err
	}
	return d.wantInFile(d.claim, 0, later)
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

// wantInFile checks what a block of a volume begins with, in its file on the host.
func (d *demo) wantInFile(v volume, block int, want string) error {
	d.did("dd if=%s bs=%d skip=%d count=1 | head -n 1", d.file(v), blockSize, block)
	file, err := os.Open(d.file(v))
	if err != nil {
		return err
	}
	defer file.Close()
	data := make([]byte, blockSize)
	if _, err := file.ReadAt(data, int64(block)*blockSize); err != nil {
		return err
	}
	got, _, _ := strings.Cut(string(data), "\n")
	d.saw("%s", got)
	if got != want {
		return fmt.Errorf("block %d of the volume has %q, not %q", block, got, want)
	}
	return nil
}

// write is the command that writes text to a block of the device, and waits
// until it is in the volume.
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
