package publish

import (
	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
)

// ViewFor returns the read-only view of a staged device for a reader other than a target,
// such as an attachment, and opens it: the one that is recorded for it, set back to what it
// was, or another one. It is held, so that the number stays its own. The reader is a name
// that is no path. Another call for the same reader must not be under way.
//
// Errors: volume.ErrExhausted where the kernel gives out no loop device;
// volume.ErrIncompatible where its user has changed it for good.
func (p *Publisher) ViewFor(volumeID, reader string, device *blockdev.Device) (*blockdev.Device, error) {
	target := Target{VolumeID: volumeID, Path: reader}
	is, found, err := p.records(volumeID).loops(viewRecord(reader), p.bootID)
	if err != nil {
		return nil, err
	}
	if found {
		// Only while it is held the number is not another's.
		if found, err = p.sysfs.IsOver(is.hold, is.number); err != nil {
			return nil, err
		}
	}
	if !found {
		return p.makeView(device, target)
	}
	view, err := blockdev.OpenNumber(is.number, p.sysfs)
	if err != nil {
		return nil, err
	}
	if err := p.restoreView(view, device, target); err != nil {
		view.Close()
		return nil, err
	}
	return view, nil
}

// ReleaseViewFor ends the view of a reader, once nobody has it open. It may be repeated.
func (p *Publisher) ReleaseViewFor(volumeID, reader string) error {
	return p.releaseView(p.records(volumeID), reader)
}

// Hold holds the staged device of a volume, whatever it is, for as long as it is staged:
// what a running container has is no mount, and a pool that looks for disks sees the loop
// device over it (blockdev.CheckUnexposed). It may be repeated.
func (p *Publisher) Hold(volumeID string, device *blockdev.Device) error {
	return p.hold(p.records(volumeID), device)
}
