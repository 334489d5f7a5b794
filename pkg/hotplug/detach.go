package hotplug

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/process"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Detach takes a device away from a container. When it returns nil, nobody can
// open it through the attachment, nobody has it open, and it is free for others.
// It may be repeated, until it is.
//
// What a process has open goes on working: the attachment is then Held, and the
// device is not released. Revoke can change that, for some devices.
//
// Errors: volume.ErrNotFound where there is no such attachment; volume.ErrInUse
// while processes have the device open, with the attachment that names them;
// volume.ErrPrecondition where a pod asks for the attachment.
func (m *Manager) Detach(ctx context.Context, id string) (Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	one, err := m.getUnwanted(id)
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
	return m.eachOf(volumeID, func(one *record) error {
		if one.Owner != owner {
			return nil
		}
		return m.detach(ctx, one)
	})
}

// CheckReleased returns an error where the volume is attached to a container, or
// processes have it open that it was detached from. The caller has the volume
// locked (Options.Inflight). Errors: volume.ErrInUse.
func (m *Manager) CheckReleased(ctx context.Context, volumeID string) error {
	return m.eachOf(volumeID, func(one *record) error {
		if one.State == Attached {
			return fmt.Errorf("%w: volume %s is attached to %s at %s (attachment %s); detach it first", volume.ErrInUse, volumeID, one.Target, one.Path, one.ID)
		}
		return m.detach(ctx, one)
	})
}

// eachOf calls do for the record of each attachment of a volume. Most volumes have
// none, and wait for nobody.
func (m *Manager) eachOf(volumeID string, do func(*record) error) error {
	ofVolume := func(one record) bool { return one.Volume == volumeID }
	all, err := m.records.all()
	if err != nil || !slices.ContainsFunc(all, ofVolume) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if all, err = m.records.all(); err != nil {
		return err
	}
	for _, one := range all {
		if ofVolume(one) {
			if err := do(&one); err != nil {
				return err
			}
		}
	}
	return nil
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
	number, err := linux.ParseDeviceNumber(one.Number)
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
	if err := container.cgroup.Revoke(ctx, number); err != nil {
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
	place, err := openPlace(container, one.Path)
	if errors.Is(err, volume.ErrPrecondition) {
		return nil // The folder is gone, and with it the node.
	}
	if err != nil {
		return err
	}
	defer place.close()
	return place.remove(number)
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
	one.State, one.Reason, one.Holders = Detached, "", nil
	return nil
}

// checkUnheld returns an error where processes have the device open through the
// attachment, whom it notes as its holders, or the kernel uses it: a container with
// the rights to can have mounted it. Errors: volume.ErrInUse.
func (m *Manager) checkUnheld(ctx context.Context, one *record) error {
	one.Holders = nil
	if one.Number == "" {
		return nil
	}
	number, err := linux.ParseDeviceNumber(one.Number)
	if err != nil {
		return err
	}
	device, err := m.reachable(number, one.DiskSeq)
	if device == nil || err != nil {
		return err
	}
	defer device.Close()
	if one.Holders, err = m.holders(ctx, one, number); err != nil {
		return err
	}
	if len(one.Holders) > 0 {
		return fmt.Errorf("%w: device %s can no longer be opened in %s, but still is open in %s; it is released once they have closed it or ended",
			volume.ErrInUse, number, one.Target, describe(one.Holders))
	}
	shared, err := m.hasOthers(one)
	if err != nil || shared {
		return err
	}
	return device.CheckFree()
}

// hasOthers reports whether others than the attachment may use the device.
func (m *Manager) hasOthers(one *record) (bool, error) {
	if one.Shared || one.Volume == "" {
		return one.Shared, nil
	}
	targets, err := m.volumes.Targets(one.Volume)
	isOwn := func(target string) bool { return filepath.Base(target) == one.Owner }
	return len(slices.DeleteFunc(targets, isOwn)) > 0, err
}

// holders returns who has the device open through the attachment. Where others may
// have it too, that is who opened the attachment's own node, or belongs to the
// container.
func (m *Manager) holders(ctx context.Context, one *record, number linux.DeviceNumber) ([]Holder, error) {
	all, err := m.processes.Holders(ctx, number, os.Getpid(), one.Node)
	if err != nil {
		return nil, err
	}
	var found []Holder
	for _, holder := range all {
		// Of one that does not answer, only what was given to its container matters.
		if holder.Unknown && (one.ContainerID == "" || holder.Container != one.ContainerID) {
			klog.FromContext(ctx).Info("A process does not tell what it has open, passing it over", "attachment", one.ID, "pid", holder.PID)
			continue
		}
		if !one.sharing() || one.isHeldBy(holder) {
			found = append(found, Holder{PID: holder.PID, Command: holder.Command})
		}
	}
	return found, nil
}

func (r record) isHeldBy(holder process.Holder) bool {
	return slices.Contains(holder.Nodes, r.Node) || r.ContainerID != "" && holder.Container == r.ContainerID
}

// reachable opens the disk that had the number, nil where it has gone: the number
// is nobody's, or another's.
func (m *Manager) reachable(number linux.DeviceNumber, seq uint64) (*blockdev.Device, error) {
	device, err := blockdev.OpenNumber(number, m.sysfs)
	if errors.Is(err, volume.ErrNotFound) || errors.Is(err, volume.ErrMismatch) {
		return nil, nil //nolint:nilnil // No disk is an answer.
	}
	if err == nil && device.DiskSeq() != seq {
		device.Close()
		return nil, nil //nolint:nilnil // No disk is an answer.
	}
	return device, err
}

// describe names the first holders.
func describe(holders []Holder) string {
	const most = 5
	var names []string
	for _, holder := range holders[:min(most, len(holders))] {
		names = append(names, fmt.Sprintf("process %d (%s)", holder.PID, holder.Command))
	}
	if more := len(holders) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
