package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Monitor finds what is wrong with the devices of this machine, and remembers what
// their counters were and which volumes could not be opened. Its methods may be called concurrently.
type Monitor struct {
	asker Asker[[]volume.Condition]
	sysfs blockdev.Sysfs
	now   func() time.Time
	// smart reads the SMART log of an NVMe controller.
	smart func(controller string) ([]byte, error)

	// known guards all below.
	known     sync.Mutex
	histories map[disk]*history
	logs      map[smartKey]smartLog
	// failed are the attempts to open volumes that have failed of late, by their IDs.
	failed map[string]attempt
}

// New returns the monitor of the machine with this tree of devices.
func New(sysfs blockdev.Sysfs) *Monitor {
	m := &Monitor{sysfs: sysfs, now: time.Now, histories: map[disk]*history{}, logs: map[smartKey]smartLog{}, failed: map[string]attempt{}}
	m.smart = m.readSMART
	return m
}

// Device is a device whose health is asked for, and what is expected of it.
type Device struct {
	// Number is its number.
	Number linux.DeviceNumber
	// DiskSeq is the sequence number of its disk (blockdev.Device.DiskSeq), if IsKnown
	// says that it is known.
	DiskSeq uint64
	IsKnown bool
	// Writable says that it should not refuse writes.
	Writable bool
}

// Devices returns what is wrong with devices, of which something is made, and with
// what they are made of themselves. Errors: that of ctx, when it ends first.
func (m *Monitor) Devices(ctx context.Context, devices ...Device) ([]volume.Condition, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	names := make([]string, len(devices))
	for i, device := range devices {
		names[i] = device.String()
	}
	found, err := m.asker.Ask(ctx, strings.Join(names, ", "), func(context.Context) ([]volume.Condition, error) {
		seen := map[linux.DeviceNumber]bool{}
		var found []volume.Condition
		for _, device := range devices {
			found = append(found, m.examine(device, seen)...) //nolint:contextcheck // What hangs is waited for beside the caller; nothing here can be cut off.
		}
		return found, nil
	})
	if silent := new(SilentError); errors.As(err, &silent) {
		return []volume.Condition{silent.Condition()}, nil
	}
	return found, err
}

// Pool returns what is wrong with the devices that a pool lies on. Each is looked at by
// itself: one that does not answer says nothing of the others. Errors: that of ctx.
func (m *Monitor) Pool(ctx context.Context, pool string, numbers []linux.DeviceNumber) ([]volume.Condition, error) {
	found := make([][]volume.Condition, len(numbers))
	group, ctx := errgroup.WithContext(ctx)
	for i, number := range numbers {
		group.Go(func() (err error) {
			found[i], err = m.Devices(ctx, Device{Number: number, Writable: true})
			return err
		})
	}
	err := group.Wait()
	all := slices.Concat(found...)
	for i := range all {
		// One device of a pool is not the pool.
		all[i].Severity = volume.Degraded
		all[i].Message = "pool " + pool + ": " + all[i].Message
	}
	return all, err
}

// String names all that is asked of a device: what is not the same is not the answer.
func (d Device) String() string {
	text := "block device " + d.Number.String()
	if d.IsKnown {
		text += fmt.Sprintf(" (disk sequence number %d)", d.DiskSeq)
	}
	if d.Writable {
		text += " for writing"
	}
	return text
}

// examine looks at a device and at what is below it, each only once.
func (m *Monitor) examine(device Device, seen map[linux.DeviceNumber]bool) []volume.Condition {
	if seen[device.Number] {
		return nil
	}
	seen[device.Number] = true
	vitals, err := m.sysfs.Vitals(device.Number)
	if failure := unusable(device, &vitals, err); failure != nil {
		return m.date(device.Number, device.DiskSeq, []volume.Condition{*failure})
	}
	found := m.examineBelow(device, &vitals, seen)
	own := slices.Concat(m.judge(device, &vitals), judgeMapping(device.Number, &vitals), m.judgeSMART(device.Number, &vitals))
	for _, condition := range m.date(device.Number, vitals.DiskSeq, own) {
		// A partition is read-only since its disk is, and waits since its disk hangs.
		if !has(found, condition.Reason) {
			found = append(found, condition)
		}
	}
	return found
}

// unusable returns why there is no more to be said of a device, nil where there is.
func unusable(device Device, vitals *blockdev.Vitals, err error) *volume.Condition {
	what := fmt.Sprintf("block device %s", device.Number)
	var condition volume.Condition
	switch {
	case errors.Is(err, volume.ErrNotFound):
		condition = gone(what)
	case err != nil && !errors.Is(err, volume.ErrMismatch):
		condition = Unknown(what, err)
	case err == nil && vitals.Size == 0:
		condition = gone(vitals.Name)
	case err != nil, device.IsKnown && vitals.DiskSeq != device.DiskSeq:
		condition = replaced(device)
	default:
		return nil
	}
	return &condition
}

// examineBelow looks at what a device is made of.
func (m *Monitor) examineBelow(device Device, vitals *blockdev.Vitals, seen map[linux.DeviceNumber]bool) []volume.Condition {
	var members [][]volume.Condition
	for _, number := range vitals.Below {
		members = append(members, m.examine(Device{Number: number, Writable: device.Writable}, seen))
	}
	for _, name := range vitals.Lost {
		members = append(members, []volume.Condition{gone(name)})
	}
	spared := vitals.Redundant && !allInaccessible(members)
	var found []volume.Condition
	for _, conditions := range members {
		for _, condition := range conditions {
			if spared {
				condition.Severity = volume.Degraded
			}
			found = append(found, condition)
		}
	}
	return found
}

func allInaccessible(members [][]volume.Condition) bool {
	for _, conditions := range members {
		works := true
		for _, condition := range conditions {
			works = works && condition.Severity < volume.Inaccessible
		}
		if works {
			return false
		}
	}
	return true
}

func has(conditions []volume.Condition, reason volume.Reason) bool {
	for _, condition := range conditions {
		if condition.Reason == reason {
			return true
		}
	}
	return false
}

func gone(what string) volume.Condition {
	return volume.Condition{
		Severity: volume.Inaccessible, Reason: volume.DeviceGone,
		Message: what + " has gone from the node, or has no medium; attach the disk again, or see why the mapping was removed, then delete the pods that use it, so that they are started anew",
	}
}

func replaced(device Device) volume.Condition {
	return volume.Condition{
		Severity: volume.Inaccessible, Reason: volume.DeviceReplaced,
		Message: fmt.Sprintf("block device %s is another disk than the one that was staged, whose disk sequence number was %d: it was replaced, or attached again; delete the pods that use the volume, so that it is staged anew",
			device.Number, device.DiskSeq),
	}
}
