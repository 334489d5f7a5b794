package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Disk is what sysfs tells of a whole disk, whether it can be used or not.
type Disk struct {
	// Number is the device number.
	Number linux.DeviceNumber
	// Name is the kernel's name, such as sda: that of the directory in /sys/block.
	Name string
	// NodePath is the node that the kernel itself made.
	NodePath string
	// DiskSeq is that of Device.DiskSeq: 0 on kernels before 5.15.
	DiskSeq uint64
	// Size is the size in bytes: 0 where there is no medium.
	Size uint64
	// LogicalBlockSize is the smallest unit of I/O in bytes.
	LogicalBlockSize uint64
	// Rotational says that the disk states to have moving parts. Virtual disks do so too.
	Rotational bool
	// ReadOnly says that the disk refuses all writes.
	ReadOnly bool
	// Removable says that the medium can be taken out.
	Removable bool
	// Transport is how the disk is attached, one of Transports, or else the name
	// of its driver, such as loop, zram, dm, md, nbd, sr, fd.
	Transport string
	// Model, Serial and WWID are as the disk states them: empty where it states none.
	Model, Serial, WWID string
	// HasPartitions says that the kernel knows partitions of it.
	HasPartitions bool
	// Holders are the names of the devices built upon it or its partitions.
	Holders []string
	// Err says that a fact is stated and cannot be read, or that the disk was
	// replaced meanwhile. The disk must not be chosen by what else is known then.
	Err error
}

// Disks returns all whole disks in the order of their names. It reads sysfs only and
// opens no device. A disk that goes meanwhile is left out. A disk of which
// something cannot be read is there with its Err, and with Name at least.
func (s Sysfs) Disks() ([]Disk, error) {
	entries, err := os.ReadDir(s.path("block"))
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var disks []Disk
	for _, entry := range entries {
		dir := s.path("block", entry.Name())
		if hidden, err := readFlag(dir, "hidden"); err == nil && hidden {
			continue // One path of several to an NVMe disk: it has no number.
		}
		disk := s.readDisk(dir)
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		disks = append(disks, disk)
	}
	return disks, nil
}

// IsAttached reports whether the disk that has had a number and a sequence number
// (Disk.DiskSeq) is still there. For a partition, that is its disk.
func (s Sysfs) IsAttached(number linux.DeviceNumber, seq uint64) (bool, error) {
	dir, err := s.disk(number)
	if errors.Is(err, volume.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	text, err := linux.ReadFile(dir + "/diskseq")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return seq == 0, nil // It has gone meanwhile, or the kernel has none.
	case errors.Is(err, syscall.ENODEV):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("sequence number of disk %s: %w", number, err)
	}
	return strings.TrimSpace(text) == strconv.FormatUint(seq, 10), nil
}

func (s Sysfs) readDisk(dir string) Disk {
	disk := Disk{Name: filepath.Base(dir)}
	fail := func(err error) Disk {
		disk.Err = fmt.Errorf("facts of disk %s: %w", disk.Name, err)
		return disk
	}
	if err := disk.readSelf(dir); err != nil {
		return fail(err)
	}
	if err := s.readIdentity(&disk, dir); err != nil {
		return fail(err)
	}
	if err := disk.readUse(dir); err != nil {
		return fail(err)
	}
	// The name or number could have become another disk's half-way.
	if seq, err := readSeq(dir); err != nil || seq != disk.DiskSeq {
		return fail(errors.Join(err, fmt.Errorf("%w: it was replaced while it was looked at", volume.ErrMismatch)))
	}
	return disk
}

// readSelf reads the facts that the block layer has of each disk
// (Documentation/ABI/stable/sysfs-block).
func (d *Disk) readSelf(dir string) error {
	number, err := readText(dir, "dev")
	if err != nil {
		return err
	}
	if d.Number, err = linux.ParseDeviceNumber(number); err != nil {
		return err
	}
	if d.DiskSeq, err = readSeq(dir); err != nil {
		return err
	}
	if d.NodePath, err = nodePath(dir); err != nil {
		return err
	}
	sectors, err := readNumber(dir, "size")
	if err != nil {
		return err
	}
	d.Size = sectors * 512 // Whatever the block size is.
	if d.LogicalBlockSize, err = readNumber(dir, "queue/logical_block_size"); err != nil {
		return err
	}
	for name, flag := range map[string]*bool{"queue/rotational": &d.Rotational, "ro": &d.ReadOnly, "removable": &d.Removable} {
		if *flag, err = readFlag(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// readIdentity reads what the disk itself and its bus say of it.
func (s Sysfs) readIdentity(disk *Disk, dir string) error {
	for fact, read := range map[*string]func(linux.DeviceNumber) (string, error){
		&disk.Model: s.Model, &disk.Serial: s.Serial, &disk.WWID: s.WWID,
	} {
		text, err := read(disk.Number)
		if err != nil && !errors.Is(err, ErrNoFact) {
			return err
		}
		*fact = text
	}
	place, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("place in the tree of devices: %w", err)
	}
	disk.Transport = transport(place)
	return nil
}

// Model returns the model of the disk: the file device/model of SCSI and NVMe, or
// device/name of an MMC card. For a partition it is that of its disk. Errors:
// ErrNoFact.
func (s Sysfs) Model(number linux.DeviceNumber) (string, error) {
	return s.firstFact(number, "device/model", "device/name")
}

func (d *Disk) readUse(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	dirs := []string{dir}
	for _, entry := range entries {
		partition := filepath.Join(dir, entry.Name())
		if _, err := os.Stat(partition + "/partition"); err == nil {
			dirs = append(dirs, partition)
		}
	}
	d.HasPartitions = len(dirs) > 1
	for _, dir := range dirs {
		holders, err := os.ReadDir(dir + "/holders")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, holder := range holders {
			d.Holders = append(d.Holders, holder.Name())
		}
	}
	slices.Sort(d.Holders)
	d.Holders = slices.Compact(d.Holders)
	return nil
}

// readSeq reads diskseq, which kernels before 5.15 do not have.
func readSeq(dir string) (uint64, error) {
	seq, err := readNumber(dir, "diskseq")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return seq, err
}

func readFlag(dir, name string) (bool, error) {
	number, err := readNumber(dir, name)
	return number != 0, err
}

func readNumber(dir, name string) (uint64, error) { return readInBase(dir, name, 10) }

// readInBase reads a number in a base, or, where that is 0, in the one that its prefix
// says.
func readInBase(dir, name string, base int) (uint64, error) {
	text, err := readText(dir, name)
	if err != nil {
		return 0, err
	}
	number, err := strconv.ParseUint(text, base, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return number, nil
}

func readText(dir, name string) (string, error) {
	content, err := linux.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(content), err
}
