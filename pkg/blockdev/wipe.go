package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Raw opens the device once more for I/O past the page cache. Errors:
// volume.ErrInUse with linux.RawExclusive where it is claimed; volume.ErrNotFound
// where it has gone.
func (d *Device) Raw(mode linux.RawMode) (*linux.Raw, error) {
	raw, err := linux.OpenRaw(d.node, mode)
	if errors.Is(err, syscall.EBUSY) {
		return nil, fmt.Errorf("%w: %s is %s", volume.ErrInUse, d, d.sysfs.explainClaim(d.number))
	}
	if IsGone(err) {
		return nil, d.gone(err)
	}
	if err != nil {
		return nil, fmt.Errorf("open device %s: %w", d.number, err)
	}
	return raw, nil
}

// WipeMethod is how data is destroyed. Whichever it is, the range reads zero
// afterwards.
type WipeMethod int

const (
	// WipeDiscard has the device forget the range, and writes zeros where it
	// cannot, or where something else than zeros is read afterwards.
	WipeDiscard WipeMethod = iota + 1
	// WipeZero writes zeros.
	WipeZero
	// WipeSecure has the device destroy the range and all copies of it.
	WipeSecure
)

// wipeBlock is how many bytes are read back at once.
const wipeBlock = 4 << 20

// Wipe destroys the data in a range of a device that is open for writing, and
// returns after all of it was made durable and read back as zeros. Start and size
// are in bytes and multiples of the logical block size. What takes too long for
// one call is wiped in several.
//
// Errors: EOPNOTSUPP with WipeSecure where the device cannot; ENODEV where it has
// gone.
func Wipe(device *linux.Raw, method WipeMethod, start, size uint64) error {
	if err := erase(device, method, start, size); err != nil {
		return fmt.Errorf("wipe %d bytes at %d: %w", size, start, err)
	}
	buffer := linux.RawBuffer(int(min(size, wipeBlock))) //nolint:gosec // It is small.
	zeros := make([]byte, len(buffer))
	for done := uint64(0); done < size; {
		length := min(uint64(len(buffer)), size-done)
		if err := ensureZero(device, start+done, buffer[:length], zeros[:length]); err != nil {
			return fmt.Errorf("wipe %d bytes at %d: %w", size, start, err)
		}
		done += length
	}
	if err := device.Sync(); err != nil {
		return fmt.Errorf("wipe %d bytes at %d: %w", size, start, err)
	}
	return nil
}

func erase(device *linux.Raw, method WipeMethod, start, size uint64) error {
	switch method {
	case WipeDiscard:
		if err := linux.Discard(device, start, size); err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
			return err
		}
		return nil
	case WipeSecure:
		return linux.SecureDiscard(device, start, size)
	default:
		return linux.ZeroOut(device, start, size)
	}
}

// ensureZero reads a piece into buffer, writes zeros where it has anything else,
// and reads it once more then.
func ensureZero(device *linux.Raw, start uint64, buffer, zeros []byte) error {
	for attempt := range 2 {
		if _, err := device.ReadAt(buffer, int64(start)); err != nil { //nolint:gosec // Devices have at most 2^63 bytes.
			return err
		}
		if bytes.Equal(buffer, zeros) {
			return nil
		}
		if attempt == 0 {
			if err := linux.ZeroOut(device, start, uint64(len(buffer))); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the device does not keep zeros: at %d something else is read", start)
}
