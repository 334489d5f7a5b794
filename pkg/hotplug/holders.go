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
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/process"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

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
	if err := m.checkViewFree(one); err != nil {
		return err
	}
	shared, err := m.hasOthers(one)
	if err != nil || shared {
		return err
	}
	return device.CheckFree()
}

// checkViewFree returns an error where the kernel uses the read-only view. Errors:
// volume.ErrInUse.
func (m *Manager) checkViewFree(one *record) error {
	if one.View == "" {
		return nil
	}
	number, err := linux.ParseDeviceNumber(one.View)
	if err != nil {
		return err
	}
	view, err := blockdev.OpenNumber(number, m.sysfs)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer view.Close()
	return view.CheckFree()
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
	all, err := m.processes.Holders(ctx, number, os.Getpid())
	if err != nil {
		return nil, err
	}
	granted, err := one.grantedNumber()
	if err != nil {
		return nil, err
	}
	if granted != number {
		more, err := m.processes.Holders(ctx, granted, os.Getpid())
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	var found []Holder
	for _, holder := range all {
		// Of one that does not answer, only what was given to its container matters: else
		// each process of the node that hides or hangs would keep all devices.
		if !holder.IsKnown() && holder.Container != one.ContainerID {
			klog.FromContext(ctx).Info("A process of another container does not tell what it has open, passing it over", "attachment", one.ID, "pid", holder.PID)
			continue
		}
		if !one.sharing() || one.isHeldBy(holder) {
			found = append(found, Holder{PID: holder.PID, Command: holder.Command, Unknown: unknown(holder)})
		}
	}
	return found, nil
}

func (r record) isHeldBy(holder process.Holder) bool {
	return slices.Contains(holder.Nodes, r.Node) || r.ContainerID != "" && holder.Container == r.ContainerID
}

// unknown says what may be the device, of a process that is not known to have it open.
func unknown(holder process.Holder) string {
	switch {
	case holder.IsKnown():
		return ""
	case len(holder.Unknown) > 0:
		return holder.Unknown[0]
	default:
		return "it does not tell what it has open or mapped"
	}
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
		name := fmt.Sprintf("process %d (%s)", holder.PID, holder.Command)
		if holder.Unknown != "" {
			name += ", of which nobody can tell: " + holder.Unknown
		}
		names = append(names, name)
	}
	if more := len(holders) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
