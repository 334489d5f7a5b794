package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// LoopID is a loop device as it was set up: the kernel gives it another sequence number
// when it is detached, set up again, or shown another file (inc_diskseq in the kernel's
// drivers/block/loop.c). On kernels before 5.15 that number is always 0.
type LoopID struct {
	Minor uint32
	Seq   uint64
}

// Number is the device number.
func (l LoopID) Number() linux.DeviceNumber {
	return linux.DeviceNumber{Major: linux.LoopMajor, Minor: l.Minor}
}

// holdPrefix begins the label of a hold. It is a hint for those who list loop devices:
// what a hold is says the record of whoever made it.
const holdPrefix = "rawblock-hold:"

// IsLoop reports whether the device is a loop device: whoever has one open can detach it
// (LOOP_CLR_FD), and the kernel then gives its number to another.
func (d *Device) IsLoop() bool { return d.number.Major == linux.LoopMajor }

// LoopID returns which loop device the device is.
func (d *Device) LoopID() LoopID { return LoopID{d.number.Minor, d.seq} }

// Hold keeps the device open, also when this process ends, by a read-only loop device over
// it, which nobody is given. So a loop device is not detached, whatever those do who have it
// open, and CheckUnexposed finds that the device is in use. Kubelet does the same with what it
// publishes. owner says in the label whose hold it is. End it with ReleaseLoop.
//
// Errors: volume.ErrExhausted where the kernel gives out no loop device; volume.ErrAborted
// where another program has detached the hold at once.
func (d *Device) Hold(owner string) (LoopID, error) {
	// By the kernel's own node: one that is mounted at a target would keep that busy.
	own, err := OpenNumber(d.number, d.sysfs)
	if err != nil {
		return LoopID{}, err
	}
	defer own.Close()
	hold, err := own.attachOver(holdPrefix + owner)
	if err != nil {
		return LoopID{}, fmt.Errorf("hold %s: %w", d, err)
	}
	defer hold.Close()
	return hold.LoopID(), nil
}

// attachOver sets up a read-only loop device over the device, and opens it.
func (d *Device) attachOver(label string) (*Device, error) {
	blockSize, err := linux.LogicalBlockSize(d.file)
	if err != nil {
		return nil, fmt.Errorf("block size of device %s: %w", d.number, err)
	}
	minor, err := attachLoop(linux.LoopConfig{Backing: d.file, Label: label, BlockSize: blockSize, ReadOnly: true, DirectIO: true})
	if err != nil {
		return nil, err
	}
	over, err := Open(linux.LoopPath(minor), d.sysfs)
	if err != nil {
		return nil, fmt.Errorf("open the loop device that was just set up over %s: %w", d, err)
	}
	status, err := linux.StatusOfLoop(over.file)
	if err == nil && !isViewOf(status, d.number) {
		err = fmt.Errorf("%w: another program detached %s, which was just set up; the call is repeated", volume.ErrAborted, over)
	}
	if err == nil {
		err = over.dropPartitions()
	}
	if err != nil {
		over.Close()
		return nil, err
	}
	return over, nil
}

// dropPartitions removes the partitions that a former user of the loop device's number has
// made (BLKPG). They outlive that user's file, and would show the host parts of the new one.
func (d *Device) dropPartitions() error {
	left, err := d.partitions()
	if err == nil {
		err = d.forgetPartitions(left)
	}
	if err != nil { // Nobody knows of it yet.
		err = errors.Join(err, ignoreUnset(linux.ClearLoop(d.file)))
	}
	return err
}

// IsOver reports whether a loop device still is the one that was set up over a device.
func (s Sysfs) IsOver(id LoopID, number linux.DeviceNumber) (bool, error) {
	loop, err := s.openLoopID(id)
	if loop == nil || err != nil {
		return false, err
	}
	defer loop.Close()
	status, err := linux.StatusOfLoop(loop.file)
	if err != nil {
		return false, ignoreUnset(err)
	}
	return isViewOf(status, number) && !status.Ends, nil
}

// openLoopID opens a loop device, nil where it no longer is the one that was set up.
func (s Sysfs) openLoopID(id LoopID) (*Device, error) {
	loop, err := Open(linux.LoopPath(id.Minor), s)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil //nolint:nilnil // That there is none is an answer.
	}
	if err == nil && loop.seq != id.Seq {
		loop.Close()
		return nil, nil //nolint:nilnil // The same.
	}
	return loop, err
}

// ReleaseLoop ends a loop device over a device, if it still is the one that was set up.
// It may be repeated. Errors: linux.ErrStuck where its driver does not answer.
func (s Sysfs) ReleaseLoop(id LoopID) error {
	return s.release(id.Minor, func() error {
		loop, err := s.openLoopID(id)
		if loop == nil || err != nil {
			return err
		}
		defer loop.Close()
		return s.clearReadOnly(id.Minor, loop.file)
	})
}

// ReleaseHolds ends what an owner, or with "" whoever, holds a loop device with, by the
// labels: nobody is given a hold, and who gives that label to a loop device loses it.
func (s Sysfs) ReleaseHolds(number linux.DeviceNumber, owner string) error {
	path, err := s.NodePath(number)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	minors, err := s.loopsOver("/" + filepath.Base(path))
	if err != nil {
		return err
	}
	var failed []error
	for _, minor := range minors {
		loop, err := s.loopDevice(minor)
		if errors.Is(err, volume.ErrNotFound) {
			continue
		}
		if err == nil && loop.IsHold && loop.Device == number && (owner == "" || loop.Label == holdPrefix+owner) {
			err = s.ReleaseLoop(loop.ID)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// ReleaseView ends a read-only view by its number alone: where a hold keeps the number,
// it is the view's, whatever its user has made of it. What is not read-only is none. Errors:
// linux.ErrStuck where its driver does not answer.
func (s Sysfs) ReleaseView(minor uint32) error {
	return s.release(minor, func() error {
		loop, err := openLoop(minor)
		if IsGone(err) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open read-only view: %w", err)
		}
		defer loop.Close()
		return s.clearReadOnly(minor, loop)
	})
}

// release ends a loop device whose user may keep its driver from answering.
func (s Sysfs) release(minor uint32, release func() error) error {
	err := s.asked.limit.Run("release "+linux.LoopPath(minor), release)
	if errors.Is(err, linux.ErrStuck) {
		return fmt.Errorf("detach %s: %w; end what its user runs", linux.LoopPath(minor), err)
	}
	return err
}

// clearReadOnly ends a loop device that refuses all writes. Its status is not asked: the file
// that it shows now may be on a filesystem that is dead.
func (s Sysfs) clearReadOnly(minor uint32, loop linux.Descriptor) error {
	readOnly, err := readNumber(s.device(linux.DeviceNumber{Major: linux.LoopMajor, Minor: minor}), "ro")
	if err != nil || readOnly == 0 {
		return err
	}
	if err := ignoreUnset(linux.ClearLoop(loop)); err != nil {
		return fmt.Errorf("detach %s: %w", loop.Name(), err)
	}
	return nil
}
