package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Partition is a part of a disk as the kernel knows it, which need not be what a
// table on the disk says.
type Partition struct {
	// Disk and Number are the device numbers of the disk and of the partition.
	Disk, Number linux.DeviceNumber
	// Index counts the partitions from 1.
	Index int
	// Start and Size are its place on the disk in bytes.
	Start, Size uint64
}

// Partitions returns the partitions of the disk with the given number, in no
// order. One that goes meanwhile is left out. Errors: volume.ErrNotFound where
// there is no such disk.
func (s Sysfs) Partitions(disk linux.DeviceNumber) ([]Partition, error) {
	if _, err := s.disk(disk); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(s.device(disk) + "/*/partition")
	if err != nil {
		return nil, fmt.Errorf("list the partitions of block device %s: %w", disk, err)
	}
	var found []Partition
	for _, file := range files {
		partition, err := readPartition(filepath.Dir(file))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a partition of block device %s: %w", disk, err)
		}
		partition.Disk = disk
		found = append(found, partition)
	}
	return found, nil
}

// readPartition reads what the kernel says in the directory of a partition
// (Documentation/ABI/stable/sysfs-block); it counts in sectors of 512 bytes,
// whatever the block size is.
func readPartition(dir string) (Partition, error) {
	number, err := readText(dir, "dev")
	if err != nil {
		return Partition{}, err
	}
	var partition Partition
	if partition.Number, err = linux.ParseDeviceNumber(number); err != nil {
		return Partition{}, err
	}
	var index uint64
	for name, fact := range map[string]*uint64{"partition": &index, "start": &partition.Start, "size": &partition.Size} {
		if *fact, err = readNumber(dir, name); err != nil {
			return Partition{}, err
		}
	}
	partition.Index = int(index) //nolint:gosec // A disk has at most 256 (DISK_MAX_PARTS).
	partition.Start *= 512
	partition.Size *= 512
	return partition, nil
}

// Partition returns what the kernel knows of the partition that the device is.
// Errors: volume.ErrNotFound where it has gone; volume.ErrMismatch where it is no
// partition.
func (d *Device) Partition() (Partition, error) {
	disk, err := d.sysfs.disk(d.number)
	if err != nil {
		return Partition{}, err
	}
	if disk == d.sysfs.device(d.number) {
		return Partition{}, fmt.Errorf("%w: %s is not a partition", volume.ErrMismatch, d)
	}
	partition, err := readPartition(d.sysfs.device(d.number))
	if err != nil {
		return Partition{}, fmt.Errorf("read the place of partition %s: %w", d, err)
	}
	number, err := linux.ReadFile(disk + "/dev")
	if err != nil {
		return Partition{}, fmt.Errorf("number of the disk of partition %s: %w", d, err)
	}
	partition.Disk, err = linux.ParseDeviceNumber(strings.TrimSpace(number))
	return partition, err
}

// AddPartition makes the kernel see a partition of the disk that the device is.
// Nothing is written. Errors: volume.ErrInUse where the number is taken, or the
// place is a part of another partition.
func (d *Device) AddPartition(index int, start, size uint64) error {
	return d.partitionError("add", index, linux.AddPartition(d.file, index, start, size))
}

// ResizePartition changes the size of a partition, which may be in use.
func (d *Device) ResizePartition(index int, start, size uint64) error {
	return d.partitionError("resize", index, linux.ResizePartition(d.file, index, start, size))
}

// DeletePartition makes the kernel forget a partition; one that it does not know
// is no error. Errors: volume.ErrInUse while anybody has it open, be it without a
// claim; volume.ErrNotFound where the disk has gone, of which the kernel knows none.
func (d *Device) DeletePartition(index int) error {
	err := linux.DeletePartition(d.file, index)
	if errors.Is(err, syscall.ENXIO) {
		_, err := d.presentSize()
		return err
	}
	return d.partitionError("delete", index, err)
}

func (d *Device) partitionError(what string, index int, err error) error {
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%w: %s partition %d of %s: %w", volume.ErrInUse, what, index, d, err)
	}
	if err != nil {
		return fmt.Errorf("%s partition %d of %s: %w", what, index, d, err)
	}
	return nil
}
