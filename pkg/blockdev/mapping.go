package blockdev

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// ErrorTarget is the target of device-mapper that fails all I/O (drivers/md/dm-target.c).
const ErrorTarget = "error"

// IsMapping reports whether the device is one of device-mapper: the kernel names all of
// them dm-N (alloc_dev in drivers/md/dm.c).
func (d *Device) IsMapping() (bool, error) {
	path, err := d.sysfs.NodePath(d.number)
	return strings.HasPrefix(path, "/dev/dm-"), err
}

// CheckWorking returns an error for a mapping of device-mapper where I/O fails because of
// its table. So it is once the device was taken from processes that had it open: with
// another table they would have it again, so it must be made anew before anybody else is
// given it. Of a device that is no mapping nothing is asked.
//
// Errors: volume.ErrPrecondition for a table with an error target, and where
// device-mapper cannot be asked.
func (d *Device) CheckWorking() error {
	mapping, err := d.IsMapping()
	if err != nil || !mapping {
		return err
	}
	control, err := linux.OpenMapper()
	var none *linux.MapperError
	if errors.As(err, &none) {
		return fmt.Errorf("%w: %s is a mapping, and its table cannot be read: %w; let the plugin have the host's /dev", volume.ErrPrecondition, d, err)
	}
	if err != nil {
		return fmt.Errorf("see whether %s works: %w", d, err)
	}
	defer control.Close()
	table, err := control.Table(d.number)
	if err != nil {
		return fmt.Errorf("see whether %s works: %w", d, err)
	}
	for _, target := range table {
		if target.Type == ErrorTarget {
			return fmt.Errorf("%w: the table of %s has an error target: it was taken from processes that had it open (rawblockctl detach --force), or somebody made it so; once nobody has it open, remove the mapping and make it anew, which NodeUnstageVolume and NodeStageVolume do for a volume of a pool",
				volume.ErrPrecondition, d)
		}
	}
	return nil
}
