package hotplug

import (
	"cmp"
	"context"
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// A disk that is attached read-only is not given to the container itself: whoever may only
// open it for reading can still send it commands that write (SG_IO with CAP_SYS_RAWIO,
// NVME_IOCTL_IO_CMD). The container gets a read-only loop device over it, which knows no such
// commands (docs/adr/0022-read-only-attachments.md).

// grantedNumber is the number of the device that the container may open.
func (r record) grantedNumber() (linux.DeviceNumber, error) {
	return linux.ParseDeviceNumber(cmp.Or(r.View, r.Number))
}

// stagedID is what the device is staged as.
func (r record) stagedID() string {
	if r.Claimed || r.Volume == "" {
		return r.claimID()
	}
	return r.Volume
}

// reader is what the attachment's read-only view is recorded for.
func (r record) reader() string { return "attachment " + r.ID }

// provide decides which device the container gets, and records it before it gets it.
func (m *Manager) provide(ctx context.Context, one *record, device *blockdev.Device) error {
	if err := m.volumes.Hold(one.stagedID(), device); err != nil {
		return err
	}
	if !one.ReadOnly {
		return nil
	}
	view, err := m.volumes.ViewFor(one.stagedID(), one.reader(), device)
	if err != nil {
		return err
	}
	view.Close() // It is held.
	one.View = view.Number().String()
	return m.set(ctx, one, Pending, "")
}

// checkGranted sees that what the container was given is what it was given, whatever it
// made of it. Errors: volume.ErrMismatch.
func (m *Manager) checkGranted(one *record, device *blockdev.Device) error {
	if err := m.volumes.Hold(one.stagedID(), device); err != nil {
		return err
	}
	if one.View == "" {
		return nil
	}
	view, err := m.volumes.ViewFor(one.stagedID(), one.reader(), device)
	if err != nil {
		return err
	}
	view.Close()
	if now := view.Number().String(); now != one.View {
		return fmt.Errorf("%w: the read-only view %s has gone", volume.ErrMismatch, one.View)
	}
	return nil
}
