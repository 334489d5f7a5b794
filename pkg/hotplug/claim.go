package hotplug

import (
	"errors"
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// lockVolume keeps CSI calls from a volume, and fails while one is under way.
func (m *Manager) lockVolume(volumeID string) (unlock func(), err error) {
	if volumeID == "" {
		return func() {}, nil
	}
	return m.inflight.Lock(volumeID)
}

// open opens the device that is asked for. Where it was attached before, it must
// be that very disk: a path may lead to another by now.
func (m *Manager) open(one record) (*blockdev.Device, error) {
	device, err := m.openRequested(one.Request)
	if err != nil {
		return nil, err
	}
	if one.Number != "" && (one.Number != device.Number().String() || one.DiskSeq != device.DiskSeq()) {
		defer device.Close()
		return nil, fmt.Errorf("%w: device %s with disk sequence number %d was attached, but now there is %s with disk sequence number %d; detach it, and attach it anew if that is the disk that is meant",
			volume.ErrMismatch, one.Number, one.DiskSeq, device, device.DiskSeq())
	}
	return device, nil
}

func (m *Manager) openRequested(request Request) (*blockdev.Device, error) {
	if request.Device != "" {
		return blockdev.Open(request.Device, m.sysfs)
	}
	device, mode, err := m.volumes.OpenStaged(request.Volume)
	if err == nil && mode.ReadOnly() && !request.ReadOnly {
		device.Close()
		return nil, fmt.Errorf("%w: volume %s is staged with access mode %s, in which nobody writes; attach it read-only", volume.ErrPrecondition, request.Volume, mode)
	}
	return device, err
}

// remedy is what to do so that the device is free: what is held was detached already.
func (r record) remedy(detach string) string {
	if r.State == Held {
		return "end the processes that have it open"
	}
	return detach
}

// checkExclusive returns an error where another attachment has the device, and
// not both allow that, or one in the same container has its number, be it for a disk
// that has gone: a grant is for a number, and would be taken away with that one. Pods
// that ask for an attachment share a volume as pods do.
func checkExclusive(one record, all []record) error {
	for _, other := range all {
		if other.ID == one.ID || other.Number != one.Number {
			continue
		}
		if other.isSameContainer(one) {
			return fmt.Errorf("%w: device %s is attached to this container at %s (attachment %s, %s); %s", volume.ErrInUse, one.Number, other.Path, other.ID, other.State, other.remedy("detach it first"))
		}
		if other.DiskSeq == one.DiskSeq && (!one.sharing() || !other.sharing()) {
			return fmt.Errorf("%w: device %s is attached to %s (attachment %s, %s); %s", volume.ErrInUse, one.Number, other.Target, other.ID, other.State, other.remedy("detach it there first, or have both share it"))
		}
	}
	return nil
}

// sharing reports whether others may have the device as well.
func (r record) sharing() bool { return r.Shared || r.Owner != "" }

// claim sees that nothing else uses the device, and that nothing else gets it.
// That of a volume is claimed by being staged.
func (m *Manager) claim(one record, device *blockdev.Device) error {
	if err := device.CheckWorking(); err != nil {
		return err
	}
	if one.Volume != "" {
		return m.checkUnpublished(one, device)
	}
	mode := volume.SingleNodeWriter
	if one.Shared {
		mode = volume.MultiNodeMultiWriter
	} else if err := m.checkUnexposed(one, device); err != nil {
		return err
	}
	return m.volumes.Stage(one.claimID(), device, mode)
}

// checkUnexposed returns an error where the device is handed out as it is. A staged loop
// device is held by another one, of which an administrator knows nothing: so the volume
// is named, where there is one. An attachment that is restored has its claim already, and
// finds its own hold.
func (m *Manager) checkUnexposed(one record, device *blockdev.Device) error {
	volumeID, staged, err := m.volumes.StagedAs(device)
	if err != nil {
		return err
	}
	if staged && volumeID == one.claimID() {
		return device.CheckUnpublished()
	}
	if staged {
		return fmt.Errorf("%w: device %s is staged as volume %s; attach that volume by its ID, or unstage it first", volume.ErrInUse, device, volumeID)
	}
	return device.CheckUnexposed()
}

// claimID is what the device is staged as.
func (r record) claimID() string { return claimPrefix + r.ID }

const claimPrefix = "hot-attach/"

// checkUnpublished returns an error where pods have the volume, or the host uses
// it, and it is not to be shared.
func (m *Manager) checkUnpublished(one record, device *blockdev.Device) error {
	targets, err := m.volumes.Targets(one.Volume)
	if err != nil || one.sharing() {
		return err
	}
	if len(targets) > 0 {
		return fmt.Errorf("%w: volume %s is published at %s; allow that the device is shared, if the programs know how to", volume.ErrInUse, one.Volume, targets[0])
	}
	// Records can be lost, and a mount is no claim.
	return errors.Join(device.CheckUnpublished(), device.CheckFree())
}
