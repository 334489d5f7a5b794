package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

const (
	diskSize = 64 << 20
	// blockSize is the unit in which the pods write.
	blockSize = 4096
)

// disk is a file that a loop device shows as a block device.
type disk struct {
	// path is the device node, /dev/loopN.
	path string
	// backing is the file, where the bytes of the disk end up.
	backing string
}

func (d *demo) makeDisk(context.Context) error {
	backing := d.path("disk")
	minor, err := attachLoop(backing)
	if err != nil {
		return fmt.Errorf("make a loop device: %w", err)
	}
	d.disk = disk{linux.LoopPath(minor), backing}
	d.later(d.removeDisk)
	d.did("losetup %s $DEMO/disk", d.disk.path)
	d.saw("%s is block device %d:%d with %d MiB", d.disk.path, linux.LoopMajor, minor, diskSize>>20)
	return nil
}

// attachLoop makes a file and sets up a free loop device over it.
func attachLoop(backing string) (minor uint32, err error) {
	file, err := os.Create(backing)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if err := file.Truncate(diskSize); err != nil {
		return 0, err
	}
	for {
		minor, err := linux.FreeLoop()
		if err != nil {
			return 0, err
		}
		err = configureLoop(minor, file)
		if errors.Is(err, syscall.EBUSY) {
			continue // Another program took it first.
		}
		return minor, err
	}
}

func configureLoop(minor uint32, backing *os.File) error {
	loop, err := os.OpenFile(linux.LoopPath(minor), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	return linux.ConfigureLoop(loop, linux.LoopConfig{Backing: backing, Label: "rawblock-demo"})
}

func (d *demo) removeDisk(context.Context) error {
	d.did("losetup -d %s", d.disk.path)
	loop, err := os.Open(d.disk.path)
	if err != nil {
		return fmt.Errorf("remove the disk: %w", err)
	}
	defer loop.Close()
	if err := linux.ClearLoop(loop); err != nil {
		return fmt.Errorf("remove the disk: %w", err)
	}
	return nil
}

// wantOnDisk checks what a block of the disk begins with, in the file below the
// loop device.
func (d *demo) wantOnDisk(block int, want string) error {
	d.did("dd if=$DEMO/disk bs=%d skip=%d count=1", blockSize, block)
	file, err := os.Open(d.disk.backing)
	if err != nil {
		return err
	}
	defer file.Close()
	data := make([]byte, blockSize)
	if _, err := file.ReadAt(data, int64(block)*blockSize); err != nil {
		return err
	}
	got := strings.Trim(string(data), "\n\x00")
	d.saw("%s", got)
	if got != want {
		return fmt.Errorf("block %d of the disk has %q, not %q", block, got, want)
	}
	return nil
}
