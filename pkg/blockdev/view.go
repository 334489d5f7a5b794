package blockdev

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// A read-only view is a loop device over a device, for which the loop driver
// itself refuses every write (docs/adr/0002-read-only-views.md). The kernel
// keeps the label of the loop device, so the label is the record of whose view
// it is: viewPrefix, the hash of the owner, and the sequence number of the disk
// below. No file has to say the same.
const viewPrefix = "rawblock-ro:"

func viewLabel(owner string) string {
	hash := sha256.Sum256([]byte(owner))
	return viewPrefix + hex.EncodeToString(hash[:16]) + ":"
}

// ReadOnlyView returns a read-only view of the device for the owner, an
// arbitrary name. It is found again if it exists already. The view outlives the
// Device that is returned, and the process: end it with ReleaseView. Calls for
// one owner must not run concurrently.
//
// Errors: volume.ErrExhausted where the kernel gives out no loop device.
func (d *Device) ReadOnlyView(owner string) (*Device, error) {
	want := viewLabel(owner) + strconv.FormatUint(d.seq, 16)
	found, err := d.sysfs.views(owner)
	if err != nil {
		return nil, err
	}
	for _, view := range found {
		if view.label == want {
			return openView(view.minor, owner, d.sysfs)
		}
		// A view of a disk that was here before.
		if err := ReleaseView(view.minor, owner); err != nil {
			return nil, err
		}
	}
	minor, err := d.attachView(want)
	if err != nil {
		return nil, err
	}
	crashpoint.Here("read-only view attached")
	return openView(minor, owner, d.sysfs)
}

// openView opens the view of the owner by the number that it had a moment ago.
func openView(minor uint32, owner string, sysfs Sysfs) (*Device, error) {
	device, err := Open(linux.LoopPath(minor), sysfs)
	if err != nil {
		return nil, fmt.Errorf("open read-only view: %w", err)
	}
	if ours, err := device.IsViewOf(owner); err != nil || !ours {
		device.Close()
		return nil, errors.Join(err, fmt.Errorf("read-only view: another program took loop device %d away", minor))
	}
	return device, nil
}

// attachView sets up a free loop device and returns its minor number.
func (d *Device) attachView(label string) (uint32, error) {
	blockSize, err := linux.LogicalBlockSize(d.file)
	if err != nil {
		return 0, fmt.Errorf("block size of device %s: %w", d.number, err)
	}
	config := linux.LoopConfig{Backing: d.file, Label: label, BlockSize: blockSize, ReadOnly: true, DirectIO: true}
	minor, err := attachLoop(config)
	if err != nil {
		return 0, fmt.Errorf("set up a read-only view of %s: %w", d, err)
	}
	return minor, nil
}

// IsViewOf reports whether the device is a read-only view that belongs to owner.
// With an empty owner it reports whether it is a read-only view at all.
func (d *Device) IsViewOf(owner string) (bool, error) {
	if d.number.Major != linux.LoopMajor {
		return false, nil
	}
	return IsView(d.file, owner)
}

// IsView reports the same of an open loop device.
func IsView(loop linux.Descriptor, owner string) (bool, error) {
	label, err := linux.LoopLabel(loop)
	if errors.Is(err, syscall.ENXIO) {
		return false, nil // It is not set up.
	}
	if err != nil {
		return false, fmt.Errorf("label of %s: %w", loop.Name(), err)
	}
	if owner == "" {
		return strings.HasPrefix(label, viewPrefix), nil
	}
	return strings.HasPrefix(label, viewLabel(owner)), nil
}

// Shown returns the number and the sequence number of what the device shows: of the
// device below a read-only view, which keeps its size when that one goes, or of the
// device itself.
func (d *Device) Shown() (linux.DeviceNumber, uint64, error) {
	isView, err := d.IsViewOf("")
	if err != nil || !isView {
		return d.number, d.seq, err
	}
	status, err := linux.StatusOfLoop(d.file)
	if err != nil {
		return linux.DeviceNumber{}, 0, fmt.Errorf("status of %s: %w", d, err)
	}
	label, err := linux.LoopLabel(d.file)
	if err != nil {
		return linux.DeviceNumber{}, 0, fmt.Errorf("label of %s: %w", d, err)
	}
	seq, err := strconv.ParseUint(label[strings.LastIndex(label, ":")+1:], 16, 64)
	if err != nil {
		return linux.DeviceNumber{}, 0, fmt.Errorf("label of %s: %w", d, err)
	}
	return status.Device, seq, nil
}

// Resize has a read-only view take over the present size of the device below
// it, and updates Size. On any other device it only updates Size. Errors:
// volume.ErrNotFound where the device has gone.
func (d *Device) Resize() error {
	isView, err := d.IsViewOf("")
	if err != nil {
		return err
	}
	if isView {
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

// ReleaseView ends the view of the owner on the loop device with the given
// minor number. While somebody holds it open, the kernel ends it when the last
// one closes it. A loop device that is not a view of this owner is left alone.
func ReleaseView(minor uint32, owner string) error {
	loop, err := openLoop(minor)
	if IsGone(err) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open read-only view: %w", err)
	}
	defer loop.Close()
	ours, err := IsView(loop, owner)
	if err != nil || !ours {
		return err
	}
	if err := linux.ClearLoop(loop); err != nil && !errors.Is(err, syscall.ENXIO) {
		return fmt.Errorf("detach read-only view, loop device %d: %w", minor, err)
	}
	return nil
}

// ReleaseViews ends all views of the owner, wherever they are.
func (s Sysfs) ReleaseViews(owner string) error {
	found, err := s.views(owner)
	if err != nil {
		return err
	}
	var errs []error
	for _, view := range found {
		errs = append(errs, ReleaseView(view.minor, owner))
	}
	return errors.Join(errs...)
}

type view struct {
	minor uint32
	label string
}

// views lists the views of the owner. It looks at every loop device that is in
// use and read-only, so its cost grows with their number; it is not used where
// the device is known.
func (s Sysfs) views(owner string) ([]view, error) {
	minors, err := s.loops()
	if err != nil {
		return nil, err
	}
	var found []view
	for _, minor := range minors {
		readOnly, err := os.ReadFile(s.path("block", filepath.Base(linux.LoopPath(minor)), "ro"))
		if err != nil || strings.TrimSpace(string(readOnly)) != "1" {
			continue // Gone again meanwhile, or not a view.
		}
		label, err := loopLabel(minor)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(label, viewLabel(owner)) {
			found = append(found, view{minor, label})
		}
	}
	return found, nil
}

// loopLabel returns the label of a loop device, which is empty where it is not set up.
func loopLabel(minor uint32) (string, error) {
	loop, err := openLoop(minor)
	if IsGone(err) || errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("open loop device %d: %w", minor, err)
	}
	defer loop.Close()
	label, err := linux.LoopLabel(loop)
	if errors.Is(err, syscall.ENXIO) {
		return "", nil
	}
	return label, err
}
