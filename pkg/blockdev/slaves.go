package blockdev

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Slaves returns the numbers of the devices that a device is made of, such as the one
// below a mapping of device-mapper; none where it is a disk of its own. One that has
// gone from the machine is left out, though the device above still holds it.
func (s Sysfs) Slaves(number linux.DeviceNumber) ([]linux.DeviceNumber, error) {
	// Links in a directory of their own (Documentation/ABI/stable/sysfs-block).
	return s.linked(number, "slaves")
}

// Holders returns the numbers of the devices that are made of a device, such as the
// mapping of device-mapper above it.
func (s Sysfs) Holders(number linux.DeviceNumber) ([]linux.DeviceNumber, error) {
	return s.linked(number, "holders")
}

func (s Sysfs) linked(number linux.DeviceNumber, dir string) ([]linux.DeviceNumber, error) {
	files, err := filepath.Glob(s.device(number) + "/" + dir + "/*/dev")
	if err != nil {
		return nil, fmt.Errorf("the %s of block device %s: %w", dir, number, err)
	}
	numbers := make([]linux.DeviceNumber, len(files))
	for i, file := range files {
		text, err := linux.ReadFile(file)
		if err == nil {
			numbers[i], err = linux.ParseDeviceNumber(strings.TrimSpace(text))
		}
		if err != nil {
			return nil, fmt.Errorf("the %s of block device %s: %w", dir, number, err)
		}
	}
	return numbers, nil
}
