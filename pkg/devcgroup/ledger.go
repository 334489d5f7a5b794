package devcgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Grant is what a container was given.
type Grant struct {
	Number linux.DeviceNumber
	Access Access
}

// ledger is what was granted in the directory of a cgroup: an extended attribute of the
// directory for each device, with the access and who granted it.
type ledger struct {
	file *os.File
	// path is where it is in its hierarchy, such as /system.slice/a.scope.
	path string
	// owner is whose grants count.
	owner string
}

// attributePrefix is what the names of the attributes begin with; the device's
// number follows. Only CAP_SYS_ADMIN of the host sees and sets trusted attributes
// (xattr(7)).
const attributePrefix = "trusted.rawblock."

func attribute(number linux.DeviceNumber) string { return attributePrefix + number.String() }

// read returns what was granted of the device, 0 where nothing was, or where the
// cgroup is gone. Errors: volume.ErrInUse where another owner granted it.
func (l ledger) read(number linux.DeviceNumber) (Access, error) {
	text, found, err := linux.Attribute(l.file, attribute(number))
	if isGone(err) || err == nil && !found {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read what was granted: %w", err)
	}
	access, owner, err := parseEntry(text)
	if err != nil {
		return 0, fmt.Errorf("read what was granted: %s of %s: %w", attribute(number), l.file.Name(), err)
	}
	if owner != l.owner {
		return 0, fmt.Errorf("%w: device %s was granted to %s by the plugin of node %q, not by that of %q", volume.ErrInUse, number, l.file.Name(), owner, l.owner)
	}
	return access, nil
}

// add writes down what is about to be granted, beside what was before, and returns
// both together.
func (l ledger) add(number linux.DeviceNumber, access Access) (Access, error) {
	before, err := l.read(number)
	all := before | access
	if err != nil || all == before {
		return all, err
	}
	if err := linux.SetAttribute(l.file, attribute(number), all.String()+" "+l.owner); err != nil {
		return 0, fmt.Errorf("write down what is granted: %w", err)
	}
	return all, nil
}

// remove forgets what was granted of the device.
func (l ledger) remove(number linux.DeviceNumber) error {
	if err := linux.RemoveAttribute(l.file, attribute(number)); err != nil && !isGone(err) {
		return fmt.Errorf("forget what was granted: %w", err)
	}
	return nil
}

// unitPrefix is what the names of the attributes begin with that say what the unit
// of the cgroup allowed of a device before it was told to allow more.
const unitPrefix = "trusted.rawblock-unit."

func unitAttribute(number linux.DeviceNumber) string { return unitPrefix + number.String() }

// ofUnit returns what the unit allowed of the device, if it was told to allow more.
func (l ledger) ofUnit(number linux.DeviceNumber) (own Access, told bool, err error) {
	text, told, err := linux.Attribute(l.file, unitAttribute(number))
	if isGone(err) || err == nil && !told {
		return 0, false, nil
	}
	if err == nil {
		own, err = ParseAccess(text)
	}
	if err != nil {
		return 0, false, fmt.Errorf("read what the unit of %s allowed: %w", l.file.Name(), err)
	}
	return own, true, nil
}

// setUnit writes down what the unit allows of the device before it is told to allow
// more. The first time counts.
func (l ledger) setUnit(number linux.DeviceNumber, own Access) error {
	_, told, err := l.ofUnit(number)
	if err != nil || told {
		return err
	}
	if err := linux.SetAttribute(l.file, unitAttribute(number), own.String()); err != nil {
		return fmt.Errorf("write down what the unit allows: %w", err)
	}
	return nil
}

// removeUnit forgets what the unit allowed.
func (l ledger) removeUnit(number linux.DeviceNumber) error {
	if err := linux.RemoveAttribute(l.file, unitAttribute(number)); err != nil && !isGone(err) {
		return fmt.Errorf("forget what the unit allowed: %w", err)
	}
	return nil
}

// list returns what was granted, in no order.
func (l ledger) list() ([]Grant, error) {
	names, err := attributes(l.file.Name())
	if err != nil {
		return nil, err
	}
	var grants []Grant
	for _, name := range names {
		number, err := linux.ParseDeviceNumber(strings.TrimPrefix(name, attributePrefix))
		if err != nil {
			return nil, fmt.Errorf("read what was granted in %s: %w", l.file.Name(), err)
		}
		access, err := l.read(number)
		if errors.Is(err, volume.ErrInUse) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if access != 0 {
			grants = append(grants, Grant{number, access})
		}
	}
	return grants, nil
}

// attributes returns the names of the attributes of a cgroup that are ours.
func attributes(path string) ([]string, error) {
	names, err := linux.Attributes(path)
	if isGone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what was granted: %w", err)
	}
	var ours []string
	for _, name := range names {
		if strings.HasPrefix(name, attributePrefix) {
			ours = append(ours, name)
		}
	}
	return ours, nil
}

// parseEntry reads the value of an attribute: the access, and whose grant it is.
func parseEntry(text string) (Access, string, error) {
	access, owner, _ := strings.Cut(text, " ")
	parsed, err := ParseAccess(access)
	return parsed, owner, err
}

// isGone reports whether an error says that a cgroup was removed, and everything
// in it (kernfs answers ENODEV, and ENOENT by path).
func isGone(err error) bool {
	return errors.Is(err, syscall.ENODEV) || errors.Is(err, fs.ErrNotExist)
}
