package lvm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// device is how the device of a logical volume is found and known again.
type device struct{ name, uuid string }

func deviceOf(g lvm.Group, e entry) device {
	return device{mappingName(g.Name, e.Name), mappingUUID(g.UUID, e.UUID)}
}

// Why a logical volume has no device that can be handed out.
var (
	errInactive  = errors.New("it is not active")
	errSuspended = errors.New("its device is suspended")
	// errRevoked: I/O fails, as it does once the device was taken from a container that
	// had it open.
	errRevoked = errors.New("the table of its device has an error target")
	// errStale: it does not come back with the disk, which is another device then.
	errStale = errors.New("its device lies on a disk that has gone")
)

// find asks the kernel for the device. Errors: errInactive; volume.ErrMismatch where
// another one has its name.
//
//nolint:contextcheck // The kernel answers at once.
func (d device) find(control *linux.MapperControl) (linux.MappingInfo, error) {
	info, err := control.MappingNamed(d.name)
	if errors.Is(err, syscall.ENXIO) {
		return info, fmt.Errorf("device %s: %w", d.name, errInactive)
	}
	if err != nil {
		return info, fmt.Errorf("device %s: %w", d.name, err)
	}
	return info, d.check(info)
}

func (d device) check(info linux.MappingInfo) error {
	if info.Name != d.name || info.UUID != d.uuid {
		return fmt.Errorf("%w: the device %s has the UUID %q, not %q", volume.ErrMismatch, d.name, info.UUID, d.uuid)
	}
	return nil
}

// remove removes the mapping of the device. Errors: volume.ErrInUse.
//
//nolint:contextcheck // The kernel answers at once.
func (d device) remove(control *linux.MapperControl, info linux.MappingInfo) error {
	err := control.Remove(info.Number)
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%w: device %s is open", volume.ErrInUse, d.name)
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", d.name, err)
	}
	return nil
}

// open opens the device of a logical volume, and verifies that it is that, and works.
// Errors: errInactive, errSuspended, errRevoked; volume.ErrMismatch.
func (p *Pool) open(d device) (*blockdev.Device, error) {
	control, err := openMapper()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	info, err := d.find(control)
	if err != nil {
		return nil, err
	}
	opened, err := blockdev.OpenNumber(info.Number, p.sysfs)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, fmt.Errorf("device %s: %w: %w", d.name, errInactive, err)
	}
	if err != nil {
		return nil, err
	}
	// While it is open its number is its own.
	if err := p.verify(d, control, info.Number); err != nil {
		opened.Close()
		return nil, err
	}
	return opened, nil
}

//nolint:contextcheck // The kernel answers at once.
func openMapper() (*linux.MapperControl, error) {
	control, err := linux.OpenMapper()
	var none *linux.MapperError
	if errors.As(err, &none) {
		return nil, fmt.Errorf("%w: %w; load it with modprobe dm_mod", volume.ErrPrecondition, err)
	}
	return control, err
}

//nolint:contextcheck // The kernel answers at once.
func (p *Pool) verify(d device, control *linux.MapperControl, number linux.DeviceNumber) error {
	info, err := control.Mapping(number)
	if errors.Is(err, syscall.ENXIO) {
		return fmt.Errorf("device %s: %w", d.name, errInactive)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", d.name, err)
	}
	if err := d.check(info); err != nil {
		return err
	}
	if info.Suspended {
		return fmt.Errorf("device %s: %w", d.name, errSuspended)
	}
	if err := p.checkTable(control, number); err != nil {
		return fmt.Errorf("device %s: %w", d.name, err)
	}
	return nil
}

// checkTable follows the table of a mapping of LVM down to the disks: the parameters of
// its targets name devices as MAJOR:MINOR (Documentation/admin-guide/device-mapper). What
// is below a physical volume, such as a path that has gone, is not its business. Errors:
// errRevoked, errStale.
//
//nolint:contextcheck // The kernel answers at once.
func (p *Pool) checkTable(control *linux.MapperControl, number linux.DeviceNumber) error {
	info, err := control.Mapping(number)
	if errors.Is(err, syscall.ENXIO) || err == nil && !strings.HasPrefix(info.UUID, uuidPrefix) {
		return nil // A disk, or another mapping.
	}
	if err != nil {
		return err
	}
	table, err := control.Table(number)
	if err != nil {
		return err
	}
	for _, target := range table {
		if target.Type == "error" {
			return errRevoked
		}
		for word := range strings.FieldsSeq(target.Parameters) {
			below, isDevice := parseNumber(word)
			if !isDevice {
				continue
			}
			if _, err := p.sysfs.NodePath(below); errors.Is(err, volume.ErrNotFound) {
				return errStale
			} else if err != nil {
				return err
			}
			if err := p.checkTable(control, below); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseNumber reads MAJOR:MINOR.
func parseNumber(word string) (linux.DeviceNumber, bool) {
	first, second, ok := strings.Cut(word, ":")
	major, majorErr := strconv.ParseUint(first, 10, 32)
	minor, minorErr := strconv.ParseUint(second, 10, 32)
	return linux.DeviceNumber{Major: uint32(major), Minor: uint32(minor)}, ok && majorErr == nil && minorErr == nil
}

// checkDevice verifies a device without opening it. Errors: those of open.
//
//nolint:contextcheck // The kernel answers at once.
func (p *Pool) checkDevice(d device) error {
	control, err := openMapper()
	if err != nil {
		return err
	}
	defer control.Close()
	info, err := d.find(control)
	if err != nil {
		return err
	}
	return p.checkTable(control, info.Number)
}
