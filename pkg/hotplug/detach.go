package hotplug

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Detach takes a device away from a container. When it returns nil, nobody can
// open it through the attachment, nobody has it open, and it is free for others.
// It may be repeated, until it is, also where the plugin has released the device by itself
// meanwhile.
//
// What a process has open goes on working: the attachment is then Held, and the
// device is not released. Revoke can change that, for some devices.
//
// Errors: volume.ErrNotFound where there is no such attachment; volume.ErrInUse
// while processes have the device open, with the attachment that names them;
// volume.ErrPrecondition where a pod asks for the attachment.
func (m *Manager) Detach(ctx context.Context, id string) (Attachment, error) {
	unlock, err := m.busy.lock(ctx, id)
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	one, err := m.getUnwanted(id)
	if released, found := m.wasReleased(id); found && errors.Is(err, volume.ErrNotFound) {
		return released, nil
	}
	if err != nil {
		return Attachment{}, err
	}
	err = m.detach(ctx, &one)
	return one.Attachment, err
}

// getUnwanted returns the record with the ID, unless a pod asks for the attachment.
// Errors: volume.ErrNotFound, volume.ErrPrecondition.
func (m *Manager) getUnwanted(id string) (record, error) {
	one, err := m.get(id)
	if err != nil {
		return one, err
	}
	wanted, err := m.isWanted(&one)
	if err == nil && one.Owner != "" && wanted {
		err = fmt.Errorf("%w: attachment %s is asked for by the pod with UID %s; delete that pod", volume.ErrPrecondition, id, one.Owner)
	}
	return one, err
}

// Withdraw detaches what was attached for the pod that the target path of a
// volume is named after. The caller has the volume locked (Options.Inflight).
// Errors: those of Detach.
func (m *Manager) Withdraw(ctx context.Context, volumeID, target string) error {
	owner := filepath.Base(target)
	isIts := func(one record) bool { return one.Volume == volumeID && one.Owner == owner }
	return m.each(ctx, isIts, func(one *record) error { return m.detach(ctx, one) })
}

// CheckReleased returns an error where the volume is attached to a container, or
// processes have it open that it was detached from. The caller has the volume
// locked (Options.Inflight). Errors: volume.ErrInUse.
func (m *Manager) CheckReleased(ctx context.Context, volumeID string) error {
	isIts := func(one record) bool { return one.Volume == volumeID }
	return m.each(ctx, isIts, func(one *record) error {
		if one.State == Attached {
			return fmt.Errorf("%w: volume %s is attached to %s at %s (attachment %s); detach it first", volume.ErrInUse, volumeID, one.Target, one.Path, one.ID)
		}
		return m.detach(ctx, one)
	})
}

// each calls do for the record of each attachment that is chosen, and waits for no other.
func (m *Manager) each(ctx context.Context, chosen func(record) bool, do func(*record) error) error {
	all, err := m.records.all()
	if err != nil {
		return err
	}
	for _, one := range all {
		if !chosen(one) {
			continue
		}
		if err := m.withLocked(ctx, one.ID, do); err != nil {
			return err
		}
	}
	return nil
}

// withLocked calls do for the record with the ID, if there still is one, while nobody else
// works on the attachment.
func (m *Manager) withLocked(ctx context.Context, id string, do func(*record) error) error {
	unlock, err := m.busy.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	one, err := m.get(id)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return do(&one)
}

// detach takes away what is attached, and forgets it once nobody holds it.
func (m *Manager) detach(ctx context.Context, one *record) error {
	if one.State != Held || one.Revoke {
		if err := m.set(ctx, one, Detaching, ""); err != nil {
			return err
		}
	}
	container, err := m.holdAgain(*one)
	if err != nil {
		return err
	}
	if container != nil {
		defer container.close()
	}
	if err := m.takeAway(ctx, one, container); err != nil {
		return errors.Join(err, m.set(ctx, one, Detaching, err.Error()))
	}
	return m.release(ctx, one)
}

// undo undoes what attach did, and forgets the attachment. What cannot be undone
// now is tried again when attachments are reconciled.
func (m *Manager) undo(ctx context.Context, one *record, container *container) error {
	if err := m.takeAway(ctx, one, container); err != nil {
		return errors.Join(err, m.set(ctx, one, Detaching, err.Error()))
	}
	return m.release(ctx, one)
}

// takeAway closes the container's access to the device and removes the node. A
// container that has ended (nil) has neither any more.
func (m *Manager) takeAway(ctx context.Context, one *record, container *container) error {
	if container == nil || one.Number == "" {
		return nil
	}
	number, err := one.grantedNumber()
	if err != nil {
		return err
	}
	err = m.takeFrom(ctx, one, number, container)
	// Of a container that has ended meanwhile there is nothing left to take.
	if ended := container.checkRunning(); errors.Is(ended, volume.ErrNotFound) {
		return nil
	}
	return err
}

func (m *Manager) takeFrom(ctx context.Context, one *record, number linux.DeviceNumber, container *container) error {
	if err := m.revokeGrant(ctx, container.cgroup, number); err != nil {
		return err
	}
	crashpoint.Here("access revoked")
	allowed, err := container.cgroup.Allows(number, one.access())
	if err != nil {
		return err
	}
	if allowed {
		klog.FromContext(ctx).Info("The container may open the device by its own rules, which are left alone",
			"attachment", one.ID, "device", one.Number)
	}
	err = m.at(container, one.Path, func(place place) error { return place.remove(number) })
	if errors.Is(err, linux.ErrStuck) {
		// Nobody can open the device by it.
		klog.FromContext(ctx).Info("The node stays in the container, whose filesystem does not answer", "attachment", one.ID, "path", one.Path)
		return nil
	}
	if errors.Is(err, volume.ErrPrecondition) || errors.Is(err, errStarting) {
		return nil // The directory is gone, and with it the node; or no node was made yet.
	}
	return err
}

func (m *Manager) revokeGrant(ctx context.Context, cgroup *devcgroup.Cgroup, number linux.DeviceNumber) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return cgroup.Revoke(ctx, number)
}

// release gives up the device and forgets the attachment, unless somebody has the
// device.
func (m *Manager) release(ctx context.Context, one *record) error {
	err := m.checkUnheld(ctx, one)
	if errors.Is(err, volume.ErrInUse) && one.Revoke {
		if err = m.revoke(ctx, one, err); err != nil {
			return errors.Join(err, m.set(ctx, one, Held, err.Error()))
		}
	}
	if errors.Is(err, volume.ErrInUse) {
		return errors.Join(err, m.set(ctx, one, Held, err.Error()))
	}
	if err != nil {
		return err
	}
	return m.forget(ctx, one)
}

// forget gives up the device and forgets the attachment.
func (m *Manager) forget(ctx context.Context, one *record) error {
	m.closeDevice(one.ID)
	if one.ReadOnly {
		if err := m.volumes.ReleaseViewFor(one.stagedID(), one.reader()); err != nil {
			return err
		}
		crashpoint.Here("read-only view given up")
	}
	if one.Claimed {
		if err := m.volumes.Unstage(one.claimID()); err != nil {
			return err
		}
		crashpoint.Here("claim given up")
	}
	if err := m.records.remove(one.ID); err != nil {
		return err
	}
	if one.State != Pending {
		klog.FromContext(ctx).Info("Attachment", "attachment", one.ID, "state", Detached, "device", one.Number, "target", one.Target.String(), "path", one.Path)
	}
	wasHeld := one.State == Held
	one.State, one.Reason, one.Holders = Detached, "", nil
	if wasHeld {
		m.remember(one.Attachment)
	}
	return nil
}

// maxReleased bounds what is remembered.
const maxReleased = 1000

func (m *Manager) remember(one Attachment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.released) >= maxReleased {
		clear(m.released)
	}
	m.released[one.ID] = one
}

func (m *Manager) wasReleased(id string) (one Attachment, found bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	one, found = m.released[id]
	return one, found
}
