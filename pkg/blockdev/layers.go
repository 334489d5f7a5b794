package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Layer is a device that another one is, lies on or carries.
type Layer struct {
	Number linux.DeviceNumber
	// DiskSeq is that of Device.DiskSeq; 0 also where it is not known.
	DiskSeq uint64
	// IsPartition says that it is a partition of a disk.
	IsPartition bool
	// MapperUUID is what made it, where it is a mapping of device-mapper
	// (Documentation/ABI/testing/sysfs-block-dm).
	MapperUUID string
	// File is the file that a loop device shows, and Path where the kernel says that
	// it is, which is a hint; both are empty where it is none, or shows a device.
	File linux.FileID
	Path string
}

// Layers returns the device, all that it lies on (the disk of a partition, what a
// mapping is made of, what a loop device shows), and all that shows its blocks: what
// lies on it (partitions, mappings, loop devices), or on what a loop device shows it
// from. What shares a disk with it, and no more, is none of these.
//
// It asks for each loop device of the machine: use it where a device is taken in. What
// goes meanwhile is left out.
func (d *Device) Layers() ([]Layer, error) {
	loops, err := d.sysfs.loopsByBacking()
	if err != nil {
		return nil, err
	}
	seen := map[linux.DeviceNumber]bool{}
	if err := climb(seen, d.number, d.sysfs.below); err != nil {
		return nil, err
	}
	// A loop device shows all of what is below it, a partition or mapping a part.
	whole := []linux.DeviceNumber{d.number}
	for number := range seen {
		whole = append(whole, loops[number]...)
	}
	for number := d.number; ; {
		loop, err := d.sysfs.shownBy(number)
		if err != nil {
			return nil, err
		}
		if number = loop.Device; number == (linux.DeviceNumber{}) {
			break
		}
		whole = append(whole, number)
	}
	above := map[linux.DeviceNumber]bool{}
	for _, number := range whole {
		err := climb(above, number, func(number linux.DeviceNumber) ([]linux.DeviceNumber, error) {
			direct, err := d.sysfs.above(number)
			return append(direct, loops[number]...), err
		})
		if err != nil {
			return nil, err
		}
	}
	maps.Copy(seen, above)
	return d.sysfs.describe(seen)
}

func (s Sysfs) describe(numbers map[linux.DeviceNumber]bool) (found []Layer, err error) {
	for number := range numbers {
		layer, err := s.layer(number)
		if errors.Is(err, volume.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, layer)
	}
	slices.SortFunc(found, func(a, b Layer) int {
		return slices.Compare([]uint32{a.Number.Major, a.Number.Minor}, []uint32{b.Number.Major, b.Number.Minor})
	})
	return found, nil
}

// climb visits a device and all that next leads to from there.
func climb(seen map[linux.DeviceNumber]bool, number linux.DeviceNumber, next func(linux.DeviceNumber) ([]linux.DeviceNumber, error)) error {
	if seen[number] {
		return nil
	}
	seen[number] = true
	more, err := next(number)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, one := range more {
		if err := climb(seen, one, next); err != nil {
			return err
		}
	}
	return nil
}

// below returns what a device lies on directly.
func (s Sysfs) below(number linux.DeviceNumber) ([]linux.DeviceNumber, error) {
	found, err := s.Slaves(number)
	if err != nil {
		return nil, err
	}
	disk, err := s.diskNumber(number)
	if err != nil {
		return nil, err
	}
	loop, err := s.shownBy(number)
	if err != nil {
		return nil, err
	}
	if none := (linux.DeviceNumber{}); loop.Device != none {
		found = append(found, loop.Device)
	}
	return append(found, disk), nil
}

// above returns what lies on a device directly, but for loop devices.
func (s Sysfs) above(number linux.DeviceNumber) ([]linux.DeviceNumber, error) {
	found, err := s.Holders(number)
	if err != nil {
		return nil, err
	}
	partitions, err := s.Partitions(number)
	for _, partition := range partitions {
		found = append(found, partition.Number)
	}
	return found, err
}

// diskNumber returns the number of the whole disk that a device is, or is a partition of.
func (s Sysfs) diskNumber(number linux.DeviceNumber) (linux.DeviceNumber, error) {
	disk, err := s.disk(number)
	if err != nil {
		return linux.DeviceNumber{}, err
	}
	text, err := linux.ReadFile(disk + "/dev") // Not to be cleaned, see disk.
	if err != nil {
		return linux.DeviceNumber{}, gone(err)
	}
	return linux.ParseDeviceNumber(strings.TrimSpace(text))
}

func (s Sysfs) layer(number linux.DeviceNumber) (layer Layer, err error) {
	disk, err := s.diskNumber(number)
	if err != nil {
		return Layer{}, err
	}
	layer.Number, layer.IsPartition = number, disk != number
	if layer.DiskSeq, err = readSeq(s.device(disk)); err != nil {
		return Layer{}, gone(err)
	}
	layer.MapperUUID, err = readText(s.device(number), "dm/uuid")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Layer{}, gone(err)
	}
	loop, err := s.shownBy(number)
	if err != nil {
		return Layer{}, err
	}
	if none := (linux.DeviceNumber{}); loop.Device == none {
		layer.File = loop.File
		layer.Path = loop.Backing // A hint.
	}
	return layer, nil
}

// gone tells a fact that cannot be read any more, since its device has gone, from others.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("%w: %w", volume.ErrNotFound, err)
	}
	return err
}

// loopsByBacking returns the loop devices that are set up over a block device, by the
// number of that one.
func (s Sysfs) loopsByBacking() (map[linux.DeviceNumber][]linux.DeviceNumber, error) {
	minors, err := s.loops()
	if err != nil {
		return nil, err
	}
	found := map[linux.DeviceNumber][]linux.DeviceNumber{}
	answers := s.askEach(minors)
	for _, minor := range minors {
		loop, err := shown(answers[minor])
		if err != nil {
			return nil, err
		}
		if none := (linux.DeviceNumber{}); loop.Device != none {
			found[loop.Device] = append(found[loop.Device], linux.DeviceNumber{Major: linux.LoopMajor, Minor: minor})
		}
	}
	return found, nil
}
