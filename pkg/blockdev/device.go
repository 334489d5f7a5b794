package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Device is an open block device. Close it after use. Its methods may be called
// concurrently.
type Device struct {
	// node is the handle (O_PATH) of the device node: what gets mounted.
	node *linux.File
	// file is the device itself, opened for reading: it keeps the number taken.
	file   *linux.File
	number linux.DeviceNumber
	seq    uint64
	size   uint64
	sysfs  Sysfs
}

// Open opens the block device whose node is at path; links are followed.
//
// Errors: volume.ErrNotFound where there is no such node, or the device behind
// it has gone or has no medium; volume.ErrInvalid where it is no block device.
func Open(path string, sysfs Sysfs) (*Device, error) {
	node, err := linux.OpenPath(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("%w: no device at %s; check that the disk is attached and that udev has made the link", volume.ErrNotFound, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open device node: %w", err)
	}
	return OpenNode(node, sysfs)
}

// OpenNumber opens the block device with the given number by the name that the
// kernel has for it. Errors: those of Open.
func OpenNumber(number linux.DeviceNumber, sysfs Sysfs) (*Device, error) {
	path, err := sysfs.NodePath(number)
	if err != nil {
		return nil, err
	}
	device, err := Open(path, sysfs)
	if err != nil {
		return nil, err
	}
	if device.number != number {
		device.Close()
		return nil, fmt.Errorf("%w: %s is device %s, not %s", volume.ErrMismatch, path, device.number, number)
	}
	return device, nil
}

// OpenNode opens the block device behind a handle (O_PATH), which it takes over
// and closes also when it fails. Errors: those of Open.
func OpenNode(node *linux.File, sysfs Sysfs) (*Device, error) {
	device := &Device{node: node, sysfs: sysfs}
	if err := device.open(); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

func (d *Device) open() error {
	info, err := linux.Stat(d.node)
	if err != nil {
		return err
	}
	if !info.IsBlockDevice() {
		return fmt.Errorf("%w: %s is not a block device (it is %s)", volume.ErrInvalid, d.node.Name(), linux.TypeName(info.Type))
	}
	d.number = info.Device
	d.file, err = linux.Reopen(d.node, false)
	if IsGone(err) {
		return d.gone(err)
	}
	if err != nil {
		return fmt.Errorf("open device %s: %w", d.number, err)
	}
	if err := d.readSeq(); err != nil {
		return err
	}
	d.size, err = d.presentSize()
	return err
}

// readSeq reads the sequence number, which kernels before 5.15 do not have.
func (d *Device) readSeq() (err error) {
	d.seq, err = linux.DiskSeq(d.file)
	if err != nil && !errors.Is(err, syscall.ENOTTY) {
		return fmt.Errorf("sequence number of device %s: %w", d.number, err)
	}
	return nil
}

// presentSize returns the size that the device has now. The kernel gives none to one
// that has gone while it is held open: no device is empty. Errors:
// volume.ErrNotFound.
func (d *Device) presentSize() (uint64, error) {
	size, err := linux.BlockSize(d.file)
	if err != nil {
		return 0, fmt.Errorf("size of device %s: %w", d.number, err)
	}
	if size == 0 && !d.showsPart() {
		return 0, fmt.Errorf("%w: the device %s has gone or has no medium: its size is 0", volume.ErrNotFound, d)
	}
	return size, nil
}

// showsPart reports whether the device is a loop device that is set up to show a part of its
// file.
func (d *Device) showsPart() bool {
	if !d.IsLoop() {
		return false
	}
	status, err := linux.StatusOfLoop(d.file)
	return err == nil && !status.Whole()
}

func (d *Device) gone(err error) error {
	return fmt.Errorf("%w: the device %s has gone: %w", volume.ErrNotFound, d, err)
}

// IsGone reports whether an error of opening a device node, or of reading and
// writing with linux.Raw, says that there is no device behind it any more (open(2),
// ENXIO, ENODEV; ENOMEDIUM).
func IsGone(err error) bool {
	return errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOMEDIUM)
}

// Close closes the device.
func (d *Device) Close() {
	for _, file := range []*linux.File{d.file, d.node} {
		if file != nil {
			file.Close()
		}
	}
}

// Node is the handle (O_PATH) of the device node. It is valid until Close.
func (d *Device) Node() *linux.File { return d.node }

// Number is the number of the device.
func (d *Device) Number() linux.DeviceNumber { return d.number }

// DiskSeq is the sequence number that the kernel gave to the disk when it
// appeared. It tells two disks apart that had the same number one after the
// other. It is 0 on kernels before 5.15, which have none.
func (d *Device) DiskSeq() uint64 { return d.seq }

// Size is the size of the device in bytes when it was opened; it is 0 only of a loop device
// whose user has it begin behind the end of its file.
func (d *Device) Size() uint64 { return d.size }

// ReadOnly reports whether the device refuses all writes, whoever makes them.
func (d *Device) ReadOnly() (bool, error) {
	readOnly, err := linux.BlockReadOnly(d.file)
	if err != nil {
		return false, fmt.Errorf("read-only state of device %s: %w", d.number, err)
	}
	return readOnly, nil
}

// String names the device for a message: its path and number.
func (d *Device) String() string { return fmt.Sprintf("%s (%s)", d.node.Name(), d.number) }

// Flush writes what the page cache holds of the device to its medium, as far as it
// was written before the call.
func (d *Device) Flush() error {
	if err := linux.Sync(d.file); err != nil {
		return fmt.Errorf("flush device %s: %w", d.number, err)
	}
	return nil
}
