package publish

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Whoever is given a loop device can detach it, and the kernel then gives its number to
// another, while the node and the grant of the first still are there. So each loop device
// that is handed out is held by another one, which nobody is given: that of a staged
// volume from stage to unstage, a read-only view for as long as it is published. Which
// these are stands in the records, since their labels prove nothing
// (docs/adr/0020-holds.md).

const (
	holdRecord = "hold"
	viewPrefix = "view-"
)

// loops are a loop device that is handed out, and the one that holds it.
type loops struct {
	handedOut, hold blockdev.LoopID
	bootID          string
	// target is that of a view.
	target string
}

func viewRecord(target string) string { return viewPrefix + shortHash(target) }

func (l loops) String() string {
	return fmt.Sprintf("loop=%d diskseq=%d hold=%d holdseq=%d boot=%s target=%s",
		l.handedOut.Minor, l.handedOut.Seq, l.hold.Minor, l.hold.Seq, l.bootID, l.target)
}

func parseLoops(text string) (loops, error) {
	values, err := fields(text, "loop", "diskseq", "hold", "holdseq", "boot", "target")
	if err != nil {
		return loops{}, err
	}
	var numbers [4]uint64
	for i := range numbers {
		if numbers[i], err = strconv.ParseUint(values[i], 10, 64); err != nil {
			return loops{}, fmt.Errorf("record %q: %w", text, err)
		}
	}
	return loops{
		handedOut: blockdev.LoopID{Minor: uint32(numbers[0]), Seq: numbers[1]}, //nolint:gosec // Minor numbers have 20 bits.
		hold:      blockdev.LoopID{Minor: uint32(numbers[2]), Seq: numbers[3]}, //nolint:gosec // The same.
		bootID:    values[4], target: values[5],
	}, nil
}

// loops returns a record of loop devices. One of an earlier boot does not count, nor one
// that cannot be understood.
func (r records) loops(name, bootID string) (found loops, ok bool, err error) {
	text, err := linux.ReadLink(filepath.Join(r.folder, name))
	if noFolder(err) {
		return loops{}, false, nil
	}
	if err != nil {
		return loops{}, false, fmt.Errorf("read a record of loop devices: %w", err)
	}
	found, err = parseLoops(text)
	return found, err == nil && found.bootID == bootID, nil //nolint:nilerr // doctor tells of it.
}

// holdStaged holds a staged device that is a loop device, and finds its hold again.
func (p *Publisher) holdStaged(records records, device *blockdev.Device) error {
	if !device.IsLoop() {
		return nil
	}
	is, found, err := records.loops(holdRecord, p.bootID)
	if err != nil {
		return err
	}
	if found && is.handedOut == device.LoopID() {
		if held, err := p.sysfs.IsOver(is.hold, device.Number()); held || err != nil {
			return err
		}
	}
	if found {
		if err := p.sysfs.ReleaseLoop(is.hold); err != nil {
			return err
		}
	}
	hold, err := device.Hold(p.owner)
	if err != nil {
		return err
	}
	crashpoint.Here("staged device held")
	text := loops{handedOut: device.LoopID(), hold: hold, bootID: p.bootID}.String()
	if err := records.write(holdRecord, text); err != nil {
		return errors.Join(err, p.sysfs.ReleaseLoop(hold))
	}
	return nil
}

// releaseStaged releases what holds the device of a volume.
func (p *Publisher) releaseStaged(records records) error {
	is, found, err := records.loops(holdRecord, p.bootID)
	if err != nil || !found {
		return err
	}
	if err := p.sysfs.ReleaseLoop(is.hold); err != nil {
		return err
	}
	crashpoint.Here("hold of staged device released")
	return records.remove(holdRecord)
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
	text := loops{handedOut: view.LoopID(), hold: hold, bootID: p.bootID, target: target}.String()
	if err := records.write(viewRecord(target), text); err != nil {
		return errors.Join(err, p.sysfs.ReleaseLoop(hold))
	}
	return nil
}

// restoreView has the view that is mounted at a target show the device again, whatever
// its user has made of it, and be held.
func (p *Publisher) restoreView(view, device *blockdev.Device, target Target) error {
	records := p.records(target.VolumeID)
	is, found, err := records.loops(viewRecord(target.Path), p.bootID)
	if err != nil {
		return err
	}
	intact, err := view.IsViewOf(device)
	if err != nil {
		return err
	}
	held := false
	if found {
		if held, err = p.sysfs.IsOver(is.hold, view.Number()); err != nil {
			return err
		}
	}
	if intact && held {
		return nil
	}
	if !intact {
		if err := view.RestoreView(device, p.owner); err != nil {
			return err
		}
	}
	if found {
		if err := p.sysfs.ReleaseLoop(is.hold); err != nil {
			return err
		}
	}
	return p.holdView(records, view, target.Path)
}

// releaseView ends the view that is recorded for a target, and then its hold, which
// until then keeps the number the view's own, whatever its user has made of it.
func (p *Publisher) releaseView(records records, target string) error {
	is, found, err := records.loops(viewRecord(target), p.bootID)
	if err != nil || !found {
		return err
	}
	held, err := p.sysfs.IsOver(is.hold, is.handedOut.Number())
	if err != nil {
		return err
	}
	if held {
		err = p.sysfs.ReleaseView(is.handedOut.Minor)
	} else {
		err = p.sysfs.ReleaseLoop(is.handedOut)
	}
	if err != nil {
		return err
	}
	crashpoint.Here("read-only view released")
	if err := p.sysfs.ReleaseLoop(is.hold); err != nil {
		return err
	}
	crashpoint.Here("hold of read-only view released")
	return records.remove(viewRecord(target))
}

// Recover ends the loop devices that a plugin with the same state directory has set up
// and not recorded, as it was killed in between. Call it before any other method.
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
		if !known[loop.Minor] {
			failed = append(failed, p.sysfs.ReleaseLoop(loop))
		}
	}
	return errors.Join(failed...)
}

// recordedLoops returns the minor numbers of the loop devices of which there is a record.
func (p *Publisher) recordedLoops() (map[uint32]bool, error) {
	names, err := readNames(p.state)
	if err != nil {
		return nil, fmt.Errorf("read what is recorded: %w", err)
	}
	known := map[uint32]bool{}
	for _, name := range names {
		records := records{filepath.Join(p.state, name)}
		entries, err := readNames(records.folder)
		if noFolder(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			if entry != holdRecord && !strings.HasPrefix(entry, viewPrefix) {
				continue
			}
			is, found, err := records.loops(entry, p.bootID)
			if err != nil {
				return nil, err
			}
			if found {
				known[is.handedOut.Minor], known[is.hold.Minor] = true, true
			}
		}
	}
	return known, nil
}
