package blockdev

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Changes returns the device over an open file, and in words what its users have changed of
// what Attach makes with the options; each follows the name of the device in a sentence.
// There is nothing to say of its label, on which nothing depends, nor of a device that is not
// there, or is about to go since nobody was given it. Nothing is set back.
//
// Errors: volume.ErrInUse where there are several.
func (l *Loops) Changes(file linux.Descriptor, options LoopOptions) (path string, changes []string, err error) {
	device, status, err := l.open(file)
	if device == nil || err != nil {
		return "", nil, err
	}
	defer device.Close()
	path = linux.LoopPath(device.number.Minor)
	if changes, err = device.describeChanges(file, status, options); err != nil {
		return path, nil, fmt.Errorf("see what users of %s have changed: %w", path, err)
	}
	return path, changes, nil
}

func (d *Device) describeChanges(file linux.Descriptor, status linux.LoopStatus, options LoopOptions) ([]string, error) {
	if status.Ends {
		// Detach marks it too, where someone has it open.
		if err := d.CheckUnexposed(); !errors.Is(err, volume.ErrInUse) {
			return nil, err
		}
	}
	if !status.DirectIO {
		can, err := d.sysfs.canDirectIO(file, status.Backing.Device, options.BlockSize)
		if err != nil {
			return nil, err
		}
		status.DirectIO = !can // Without it, the device is what Attach makes.
	}
	changes, err := d.changes(&status, options)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, change := range changes {
		if change.what != "" {
			texts = append(texts, change.what)
		}
	}
	return texts, nil
}

// canDirectIO reports whether the kernel gives direct I/O to a loop device over a file on a
// device, with blocks of a size (lo_can_use_dio in the kernel's drivers/block/loop.c).
func (s Sysfs) canDirectIO(file linux.Descriptor, on linux.DeviceNumber, blockSize uint32) (bool, error) {
	least, err := linux.DirectIOBlock(file)
	if errors.Is(err, syscall.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if least != 0 || on.Major == 0 { // A filesystem on no device, or on several, as btrfs is.
		return least <= blockSize, nil
	}
	disk, err := s.disk(on)
	if err != nil {
		return false, err
	}
	size, err := readNumber(disk, "queue/logical_block_size")
	return size <= uint64(blockSize), err
}

// setBack makes the device again what Attach makes.
func (d *Device) setBack(status *linux.LoopStatus, options LoopOptions) error {
	changes, err := d.changes(status, options)
	if err != nil {
		return err
	}
	for _, change := range changes {
		if err := change.undo(); err != nil {
			return err
		}
	}
	return nil
}

// loopChange is one way in which a loop device is not what Attach makes.
type loopChange struct {
	// what says it of the device: nothing of what nobody need know.
	what string
	// undo sets it back.
	undo func() error
}

// changes returns the ways in which the device is not what Attach makes.
func (d *Device) changes(status *linux.LoopStatus, options LoopOptions) ([]loopChange, error) {
	blockSize, err := linux.LogicalBlockSize(d.file)
	if err != nil {
		return nil, err
	}
	partitions, err := d.partitions()
	if err != nil {
		return nil, err
	}
	var found []loopChange
	add := func(undo func() error, format string, args ...any) {
		found = append(found, loopChange{fmt.Sprintf(format, args...), undo})
	}
	// Also where it was detached while someone had it open.
	reset := func() error { return linux.ResetLoop(d.file, options.Label) }
	if !status.Whole() {
		add(reset, "shows only a part of its file (offset %d, size limit %d)", status.Offset, status.SizeLimit)
	}
	if status.Ends {
		add(reset, "is marked to end with its last user")
	}
	if status.Label != options.kept() {
		add(reset, "")
	}
	if blockSize != options.BlockSize {
		add(func() error { return d.setBlockSize(blockSize, options.BlockSize) }, "has blocks of %d bytes instead of %d", blockSize, options.BlockSize)
	}
	if !status.DirectIO {
		add(func() error { return d.setDirectIO(status) }, "keeps what it reads and writes in the page cache of the node")
	}
	if len(partitions) > 0 {
		add(func() error { return d.forgetPartitions(partitions) }, "has partitions, which are devices of the host (%d)", len(partitions))
	}
	return found, nil
}

func (d *Device) setBlockSize(from, to uint32) error {
	if err := linux.SetLoopBlockSize(d.file, to); err != nil {
		return fmt.Errorf("%w: its blocks have %d bytes instead of %d; end the programs that use it: %w", volume.ErrInUse, from, to, err)
	}
	return nil
}

// setDirectIO gives the device direct I/O, where the filesystem can, which Attach tells.
func (d *Device) setDirectIO(status *linux.LoopStatus) error {
	err := linux.SetLoopDirectIO(d.file)
	if errors.Is(err, syscall.EINVAL) {
		return nil
	}
	status.DirectIO = err == nil
	return err
}

// partitions returns the partitions that the kernel has read from the device's content, as
// whoever writes to it may ask for, and those that someone with CAP_SYS_ADMIN has told the
// kernel of (BLKPG), for which the device needs no flag.
func (d *Device) partitions() ([]Partition, error) {
	// To list the names takes a fraction of the time, and most have none.
	names, err := linux.ReadNames(d.sysfs.device(d.number))
	if err != nil {
		return nil, fmt.Errorf("look for partitions of %s: %w", d, err)
	}
	first := filepath.Base(linux.LoopPath(d.number.Minor)) + "p"
	if !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, first) }) {
		return nil, nil
	}
	return d.sysfs.Partitions(d.number)
}

// forgetPartitions has the kernel forget partitions: they would be devices of the host.
func (d *Device) forgetPartitions(partitions []Partition) error {
	for _, partition := range partitions {
		if err := linux.DeletePartition(d.file, partition.Index); err != nil {
			return fmt.Errorf("%w: %s is partition %d of a volume; see what uses it: %w", volume.ErrInUse, partition.Number, partition.Index, err)
		}
	}
	return nil
}
