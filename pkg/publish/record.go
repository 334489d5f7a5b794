package publish

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Publication is a volume at a target, and how it was asked for.
type Publication struct {
	// Target is the target path.
	Target string
	// Mode is the access mode of the request.
	Mode volume.AccessMode
	// ReadOnly says that the target shows a read-only view.
	ReadOnly bool
	// Arguments stands for all other arguments of the request: a hash in hex.
	Arguments string
}

// staged says which device was staged, how, in which boot, and for which volume.
type staged struct {
	number   linux.DeviceNumber
	seq      uint64
	mode     volume.AccessMode
	bootID   string
	volumeID string
}

// isSame reports whether the device is the one that was staged: not merely the
// same number, which the kernel gives to another disk after this one.
func (s staged) isSame(device *blockdev.Device) bool {
	return s.number == device.Number() && s.seq == device.DiskSeq()
}

// The text of a record is a line of key=value. The value of the last key may
// hold any character.

func (s staged) String() string {
	return fmt.Sprintf("device=%s diskseq=%d mode=%s boot=%s volume=%s", s.number, s.seq, s.mode, s.bootID, s.volumeID)
}

func parseStaged(text string) (staged, error) {
	values, err := fields(text, "device", "diskseq", "mode", "boot", "volume")
	if err != nil {
		return staged{}, err
	}
	number, err := linux.ParseDeviceNumber(values[0])
	if err != nil {
		return staged{}, fmt.Errorf("record %q: %w", text, err)
	}
	seq, err := strconv.ParseUint(values[1], 10, 64)
	if err != nil {
		return staged{}, fmt.Errorf("record %q: %w", text, err)
	}
	mode, err := volume.ParseAccessMode(values[2])
	if err != nil {
		return staged{}, fmt.Errorf("record %q: %w", text, err)
	}
	return staged{number, seq, mode, values[3], values[4]}, nil
}

func (p Publication) String() string {
	return fmt.Sprintf("mode=%s readonly=%t arguments=%s target=%s", p.Mode, p.ReadOnly, p.Arguments, p.Target)
}

func parsePublication(text string) (Publication, error) {
	values, err := fields(text, "mode", "readonly", "arguments", "target")
	if err != nil {
		return Publication{}, err
	}
	mode, err := volume.ParseAccessMode(values[0])
	if err != nil {
		return Publication{}, fmt.Errorf("record %q: %w", text, err)
	}
	readOnly, err := strconv.ParseBool(values[1])
	if err != nil {
		return Publication{}, fmt.Errorf("record %q: %w", text, err)
	}
	return Publication{Target: values[3], Mode: mode, ReadOnly: readOnly, Arguments: values[2]}, nil
}

// fields returns the values of the keys, which must stand in this order.
func fields(text string, keys ...string) ([]string, error) {
	values := make([]string, len(keys))
	for i, part := range strings.SplitN(text, " ", len(keys)) {
		value, ok := strings.CutPrefix(part, keys[i]+"=")
		if !ok {
			return nil, fmt.Errorf("record %q is malformed: expected the keys %s", text, strings.Join(keys, ", "))
		}
		values[i] = value
	}
	if values[len(keys)-1] == "" {
		return nil, fmt.Errorf("record %q is cut short: expected the keys %s", text, strings.Join(keys, ", "))
	}
	return values, nil
}
