package blockdev

import (
	"fmt"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// A read-only view is a loop device over a device, for which the loop driver itself
// refuses every write (docs/adr/0002-read-only-views.md). Its user may set its label,
// and have it show another file: so what it is, is read from the kernel, and whose it
// is, from the record of whoever made it.

// viewPrefix begins the label of a view, which is a hint for those who list loop devices.
const viewPrefix = "rawblock-ro:"

// View sets up a read-only view of the device and opens it. owner says in the label
// whose it is. The view outlives the Device that is returned, and the process: end it
// with ReleaseLoop.
//
// Errors: volume.ErrExhausted where the kernel gives out no loop device.
func (d *Device) View(owner string) (*Device, error) {
	view, err := d.attachOver(viewPrefix + owner)
	if err != nil {
		return nil, fmt.Errorf("set up a read-only view of %s: %w", d, err)
	}
	crashpoint.Here("read-only view attached")
	return view, nil
}

// isViewOf reports whether a loop device refuses all writes and shows all of a device.
func isViewOf(status linux.LoopStatus, number linux.DeviceNumber) bool {
	return status.ReadOnly && status.Device == number && status.Whole()
}

// IsViewOf reports whether the device is a read-only view of all of another, as it was made.
func (d *Device) IsViewOf(base *Device) (bool, error) {
	status, isView, err := d.viewStatus()
	if err != nil || !isView || !isViewOf(status, base.number) || status.Ends || status.PartScan || !status.DirectIO {
		return false, err
	}
	own, err := linux.LogicalBlockSize(d.file)
	if err != nil {
		return false, fmt.Errorf("block size of %s: %w", d, err)
	}
	its, err := linux.LogicalBlockSize(base.file)
	if err != nil {
		return false, fmt.Errorf("block size of %s: %w", base, err)
	}
	return own == its, nil
}

// ReadOnlyLoop returns which loop device has a number, if it is one that refuses all writes,
// as none over a file of a pool does. Its driver is not asked. Errors: volume.ErrNotFound where
// it has gone.
func (s Sysfs) ReadOnlyLoop(number linux.DeviceNumber) (id LoopID, is bool, err error) {
	if number.Major != linux.LoopMajor {
		return LoopID{}, false, nil
	}
	readOnly, err := readNumber(s.device(number), "ro")
	if err != nil {
		return LoopID{}, false, gone(err)
	}
	seq, err := readSeq(s.device(number))
	return LoopID{number.Minor, seq}, readOnly != 0, err
}

// viewStatus returns the status of a loop device that refuses all writes.
func (d *Device) viewStatus() (status linux.LoopStatus, readOnly bool, err error) {
	if !d.IsLoop() {
		return status, false, nil
	}
	status, err = linux.StatusOfLoop(d.file)
	if err != nil && ignoreUnset(err) != nil {
		return status, false, fmt.Errorf("status of %s: %w", d, err)
	}
	return status, err == nil && status.ReadOnly, nil
}

// RestoreView makes the device, which was set up as a read-only view of another, show
// that one again, and all of it, whatever its user has made of it.
//
// Errors: volume.ErrIncompatible where that cannot be had.
func (d *Device) RestoreView(base *Device, owner string) error {
	status, isView, err := d.viewStatus()
	if err != nil {
		return err
	}
	if !isView {
		return fmt.Errorf("%w: %s is no read-only view of %s any more", volume.ErrIncompatible, d, base)
	}
	// First the part that it shows: only a file of the same size can be put in.
	err = linux.ResetLoop(d.file, viewPrefix+owner)
	if err == nil && status.Device != base.number {
		err = linux.ChangeLoop(d.file, base.file)
	}
	if err == nil {
		err = linux.RefreshLoop(d.file)
	}
	if err != nil {
		return fmt.Errorf("%w: the user of %s, a read-only view of %s, has changed it, and it cannot be set back: %w", volume.ErrIncompatible, d, base, err)
	}
	if err := d.readSeq(); err != nil {
		return err
	}
	if status, _, err = d.viewStatus(); err != nil {
		return err
	}
	if !isViewOf(status, base.number) {
		return fmt.Errorf("%w: %s does not show %s", volume.ErrIncompatible, d, base)
	}
	blockSize, err := linux.LogicalBlockSize(base.file)
	if err != nil {
		return fmt.Errorf("block size of %s: %w", base, err)
	}
	// The flag for partitions stays for as long as the view does.
	if err := d.setBack(&status, LoopOptions{Label: viewPrefix + owner, BlockSize: blockSize}); err != nil {
		return fmt.Errorf("set back what a user of %s has changed: %w", d, err)
	}
	return nil
}

// Shown returns the number of what the device shows: of the device below a read-only
// view, which keeps its size when that one goes, or of the device itself.
func (d *Device) Shown() (linux.DeviceNumber, error) {
	status, isView, err := d.viewStatus()
	if err != nil || !isView || status.Device == (linux.DeviceNumber{}) {
		return d.number, err
	}
	return status.Device, nil
}

// Resize has a read-only view take over the present size of the device below
// it, and updates Size. On any other device it only updates Size. Errors:
// volume.ErrNotFound where the device has gone.
func (d *Device) Resize() error {
	status, isView, err := d.viewStatus()
	if err != nil {
		return err
	}
	if isView && status.Device != (linux.DeviceNumber{}) {
		if err := linux.RefreshLoop(d.file); err != nil {
			return fmt.Errorf("grow the read-only view %s: %w", d.number, err)
		}
	}
	size, err := d.presentSize()
	if err == nil {
		d.size = size
	}
	return err
}

// Leftovers returns the loop devices that views and holds of an owner could be, by what
// their labels say: whoever made them knows which of them still are wanted.
func (s Sysfs) Leftovers(owner string) ([]LoopDevice, error) {
	loops, err := s.LoopDevices()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(loops, func(loop LoopDevice) bool {
		return !loop.ReadOnly || loop.Label != viewPrefix+owner && loop.Label != holdPrefix+owner
	}), nil
}
