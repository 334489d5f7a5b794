package publish

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Whoever is given a loop device can detach it, and the kernel then gives its number to
// another, while the node and the grant of the first still are there. So each loop device
// that is handed out is held by another one, which nobody is given: that of a staged
// volume from stage to unstage, a read-only view for as long as it is published. Which
// these are stands in the records, since their labels prove nothing
// (docs/adr/0021-holds.md).

const (
	holdRecord = "hold"
	viewPrefix = "view-"
	noTarget   = "-" // No field of a record is empty.
)

// loops are a device that is handed out, mostly a loop device, and the one that holds it.
type loops struct {
	number linux.DeviceNumber
	seq    uint64
	hold   blockdev.LoopID
	bootID string
	// target is that of a view; noTarget stands for that of a staged device.
	target string
}

func viewRecord(target string) string { return viewPrefix + shortHash(target) }

func (l loops) String() string {
	return fmt.Sprintf("device=%s diskseq=%d hold=%d holdseq=%d boot=%s target=%s", l.number, l.seq, l.hold.Minor, l.hold.Seq, l.bootID, l.target)
}

// view is the loop device that is handed out as a view.
func (l loops) view() blockdev.LoopID { return blockdev.LoopID{Minor: l.number.Minor, Seq: l.seq} }

func parseLoops(text string) (loops, error) {
	values, err := fields(text, "device", "diskseq", "hold", "holdseq", "boot", "target")
	if err != nil {
		return loops{}, err
	}
	number, err := linux.ParseDeviceNumber(values[0])
	if err != nil {
		return loops{}, fmt.Errorf("record %q: %w", text, err)
	}
	var numbers [3]uint64
	for i := range numbers {
		if numbers[i], err = strconv.ParseUint(values[i+1], 10, 64); err != nil {
			return loops{}, fmt.Errorf("record %q: %w", text, err)
		}
	}
	return loops{
		number: number, seq: numbers[0],
		hold:   blockdev.LoopID{Minor: uint32(numbers[1]), Seq: numbers[2]}, //nolint:gosec // Minor numbers have 20 bits.
		bootID: values[4], target: values[5],
	}, nil
}

// loops returns a record of loop devices. One of an earlier boot does not count, nor one
// that cannot be understood.
func (r records) loops(name, bootID string) (found loops, ok bool, err error) {
	text, ok, err := r.read(name)
	if err != nil || !ok {
		return loops{}, false, err
	}
	if found, err = parseLoops(text); err != nil {
		r.complain(err)
		return loops{}, false, nil
	}
	return found, found.bootID == bootID, nil
}

// holdStaged holds a staged device that is a loop device.
func (p *Publisher) holdStaged(records records, device *blockdev.Device) error {
	if !device.IsLoop() {
		return nil
	}
	return p.hold(records, device)
}

// hold holds a staged device, and finds its hold again.
func (p *Publisher) hold(records records, device *blockdev.Device) error {
	is, found, err := records.loops(holdRecord, p.bootID)
	if err != nil {
		return err
	}
	if found && is.number == device.Number() && is.seq == device.DiskSeq() {
		if held, err := p.sysfs.IsOver(is.hold, device.Number()); held || err != nil {
			return err
		}
	}
	hold, err := device.Hold(p.owner)
	if err != nil {
		return err
	}
	crashpoint.Here("staged device held")
	text := loops{device.Number(), device.DiskSeq(), hold, p.bootID, noTarget}.String()
	if err := records.write(holdRecord, text); err != nil {
		return errors.Join(err, p.sysfs.ReleaseLoop(hold))
	}
	return nil
}

// releaseStaged releases what holds the device of a volume.
func (p *Publisher) releaseStaged(records records) error {
	is, found, err := records.loops(holdRecord, p.bootID)
	if err != nil {
		return err
	}
	number, own := is.number, false
	if found {
		own, err = p.sysfs.IsOver(is.hold, number)
	} else {
		// That record may have been lost, and not the other one.
		number, own, err = p.stagedDevice(records)
	}
	if err != nil {
		return err
	}
	if own {
		// All of them: a plugin that was killed may have left one that it had not recorded.
		if err := p.sysfs.ReleaseHolds(number, p.owner); err != nil {
			return err
		}
	}
	if own && found { // By this one alone where the disk has gone.
		if err := p.sysfs.ReleaseLoop(is.hold); err != nil {
			return err
		}
	}
	crashpoint.Here("hold of staged device released")
	return records.remove(holdRecord)
}

// stagedDevice returns the number of the device that is staged, and whether it still is that
// one, and not another's.
func (p *Publisher) stagedDevice(records records) (number linux.DeviceNumber, own bool, err error) {
	record, found, err := records.staged(p.bootID)
	if err != nil || !found {
		return record.number, false, err
	}
	device, err := blockdev.OpenNumber(record.number, p.sysfs)
	if errors.Is(err, volume.ErrNotFound) || errors.Is(err, volume.ErrMismatch) {
		return record.number, false, nil
	}
	if err != nil {
		return record.number, false, err
	}
	defer device.Close()
	return record.number, record.isSame(device), nil
}

// makeView sets up the read-only view for a target, in place of one that is recorded
// but not mounted there: only the one that is mounted is used again.
func (p *Publisher) makeView(device *blockdev.Device, target Target) (*blockdev.Device, error) {
	records := p.records(target.VolumeID)
	if err := p.releaseView(records, target.Path); err != nil {
		return nil, err
	}
	view, err := device.View(p.owner)
	if err != nil {
		return nil, err
	}
	if err := p.holdView(records, view, target.Path); err != nil {
		defer view.Close()
		return nil, errors.Join(err, p.sysfs.ReleaseLoop(view.LoopID()))
	}
	return view, nil
}

func (p *Publisher) holdView(records records, view *blockdev.Device, target string) error {
	hold, err := view.Hold(p.owner)
	if err != nil {
		return err
	}
	crashpoint.Here("read-only view held")
	text := loops{view.Number(), view.DiskSeq(), hold, p.bootID, target}.String()
	if err := records.write(viewRecord(target), text); err != nil {
		return errors.Join(err, p.sysfs.ReleaseLoop(hold))
	}
	return nil
}

// restoreView has the view that is mounted at a target show the device again, whatever
// its user has made of it, and be held. A loop device that may be another's by now, as its
// number was not held, is left as it is. Errors: volume.ErrIncompatible.
func (p *Publisher) restoreView(view, device *blockdev.Device, target Target) error {
	records := p.records(target.VolumeID)
	is, found, err := records.loops(viewRecord(target.Path), p.bootID)
	if err != nil {
		return err
	}
	held := false
	if found {
		if held, err = p.sysfs.IsOver(is.hold, view.Number()); err != nil {
			return err
		}
	}
	intact, err := view.IsViewOf(device)
	switch {
	case err != nil:
		return err
	case intact && held:
		return nil
	case !intact && !held && (!found || is.view() != view.LoopID()):
		return fmt.Errorf("%w: %s at %s is no read-only view of %s any more", volume.ErrIncompatible, view, target.Path, device)
	case !intact:
		// The record must have the number that it gets: until then, the hold tells.
		if err := view.RestoreView(device, p.owner); err != nil {
			return err
		}
		crashpoint.Here("read-only view restored")
	}
	if !held {
		return p.holdView(records, view, target.Path)
	}
	is.seq = view.DiskSeq()
	return records.write(viewRecord(target.Path), is.String())
}

// releaseView ends the view that is recorded for a target, and then its hold, which
// until then keeps the number the view's own, whatever its user has made of it.
func (p *Publisher) releaseView(records records, target string) error {
	is, found, err := records.loops(viewRecord(target), p.bootID)
	if err != nil || !found {
		return err
	}
	held, err := p.sysfs.IsOver(is.hold, is.number)
	if err != nil {
		return err
	}
	if !held { // Its number may be another's by now.
		if err := p.sysfs.ReleaseLoop(is.view()); err != nil {
			return err
		}
		return records.remove(viewRecord(target))
	}
	if err := p.sysfs.ReleaseView(is.number.Minor); err != nil {
		return err
	}
	crashpoint.Here("read-only view released")
	if err := p.sysfs.ReleaseHolds(is.number, p.owner); err != nil {
		return err
	}
	crashpoint.Here("hold of read-only view released")
	return records.remove(viewRecord(target))
}

// Recover ends the loop devices that a plugin with the same state directory has set up
// and not recorded, as it was killed in between. What is mounted, staged or holds such a
// device has an owner whose record was lost, and stays. Call it before any other method.
func (p *Publisher) Recover() error {
	left, err := p.sysfs.Leftovers(p.owner)
	if err != nil || len(left) == 0 {
		return err
	}
	known, err := p.recordedLoops()
	if err != nil {
		return err
	}
	var failed []error
	for _, loop := range left {
		// By its number: its user may have given a view another sequence number.
		if known[loop.ID.Number()] || known[loop.Device] && loop.IsHold {
			continue
		}
		used, err := p.isUsed(loop)
		if err == nil && !used {
			err = p.sysfs.ReleaseLoop(loop.ID)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// isUsed reports whether a view, or what a hold holds, is mounted somewhere.
func (p *Publisher) isUsed(loop blockdev.LoopDevice) (bool, error) {
	number := loop.ID.Number()
	if loop.IsHold {
		number = loop.Device
	}
	places, err := p.sysfs.Mounted(number)
	return len(places) > 0, err
}

// recordedLoops returns the numbers of the loop devices that are staged, or of which
// there is a record.
func (p *Publisher) recordedLoops() (map[linux.DeviceNumber]bool, error) {
	found, err := Survey(p.state)
	if err != nil {
		return nil, err
	}
	known := map[linux.DeviceNumber]bool{}
	for _, record := range found {
		if record.IsStaged && record.Current {
			known[record.Staged.Number] = true
		}
		for _, loop := range append(record.Views, record.Holds...) {
			known[loop.Number()] = true
		}
	}
	return known, nil
}
