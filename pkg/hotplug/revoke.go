package hotplug

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Revoke detaches as Detach does, and takes the device also from those processes that
// have it open: the table of its device-mapper mapping is replaced by an error target,
// so whatever they read or write from then on fails with EIO. The medium is not
// touched. Where nobody has the device open, it is the same as Detach.
//
// The mapping stays like that until whoever made it, the pool or the administrator,
// makes it anew, which takes that the last process closes it.
//
// Errors: those of Detach; volume.ErrPrecondition where processes have the device open
// and it is no mapping that may be replaced, or others have it too; volume.ErrAborted
// where its disk does not answer, so that I/O is under way that nothing can end.
// The attachment is then Held.
func (m *Manager) Revoke(ctx context.Context, id string) (Attachment, error) {
	unlock, err := m.busy.lock(ctx, id)
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	one, err := m.getRevocable(id)
	if err != nil {
		return Attachment{}, err
	}
	// Recorded first, by detach: after a crash it is gone on with.
	one.Revoke = true
	err = m.detach(ctx, &one)
	return one.Attachment, err
}

// getRevocable returns the record with the ID. One that a pod asks for must be on its
// way out: the volume of a pod that is deleted stays published for it for as long as
// the device is held. Errors: volume.ErrNotFound, volume.ErrPrecondition.
func (m *Manager) getRevocable(id string) (record, error) {
	one, err := m.get(id)
	if err == nil && one.State == Held {
		return one, nil
	}
	return m.getUnwanted(id)
}

// revoke takes the device from those who have it open, as held says. What was refused is not tried
// again by itself; what failed half way is.
func (m *Manager) revoke(ctx context.Context, one *record, held error) error {
	err := m.tryRevoke(ctx, one, held)
	if errors.Is(err, volume.ErrPrecondition) || errors.Is(err, volume.ErrAborted) {
		one.Revoke = false
	}
	return err
}

func (m *Manager) tryRevoke(ctx context.Context, one *record, held error) error {
	number, err := linux.ParseDeviceNumber(one.Number)
	if err != nil {
		return err
	}
	// While it is open its number is its own.
	device, err := m.reachable(number, one.DiskSeq)
	if device == nil || err != nil {
		return err
	}
	defer device.Close()
	if err := errors.Join(m.checkAlone(one), m.checkNothingAbove(device), checkByProcess(one, held)); err != nil {
		return err
	}
	if err := replaceByError(ctx, device); err != nil {
		return err
	}
	crashpoint.Here("device revoked")
	m.metrics.revoked.Inc()
	klog.FromContext(ctx).Info("Took the device from the processes that had it open", "attachment", one.ID, "device", one.Number, "holders", one.Holders)
	return nil
}

// checkAlone returns an error where others than the attachment would lose the device
// too. Errors: volume.ErrPrecondition.
func (m *Manager) checkAlone(one *record) error {
	all, err := m.records.all()
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.ID != one.ID && other.Number == one.Number && other.DiskSeq == one.DiskSeq {
			return fmt.Errorf("%w: device %s is attached to %s too (attachment %s), which would lose it; detach it there first",
				volume.ErrPrecondition, one.Number, other.Target, other.ID)
		}
	}
	shared, err := m.hasOthers(one)
	if err != nil || !shared {
		return err
	}
	if one.Volume == "" {
		return fmt.Errorf("%w: device %s is attached as one that others have too, and they would lose it", volume.ErrPrecondition, one.Number)
	}
	return fmt.Errorf("%w: volume %s is published to other pods too, which would lose it; delete them first", volume.ErrPrecondition, one.Volume)
}

// checkNothingAbove returns an error where another device is made of this one.
// Errors: volume.ErrPrecondition.
func (m *Manager) checkNothingAbove(device *blockdev.Device) error {
	above, err := m.sysfs.Holders(device.Number())
	if err == nil && len(above) > 0 {
		err = fmt.Errorf("%w: device %s is made of %s, and would fail with it; take it away first", volume.ErrPrecondition, above[0], device)
	}
	return err
}

// checkByProcess returns an error where no process has the device, but the kernel: what
// that uses it for, such as a mounted filesystem, may be anybody's. Errors:
// volume.ErrPrecondition.
func checkByProcess(one *record, held error) error {
	if len(one.Holders) > 0 {
		return nil
	}
	return fmt.Errorf("%w: device %s is taken from processes only, and none has it open, but the kernel uses it: %s", volume.ErrPrecondition, one.Number, held.Error())
}

// suspendLimit bounds how long is waited for I/O that is under way, in which a disk
// that works is done many times over.
const suspendLimit = 10 * time.Second

// replaceByError replaces the table of a mapping by an error target of its size. It
// may be repeated. The device must be open. Errors: volume.ErrPrecondition where it is
// no mapping, or one that must not be replaced; volume.ErrAborted.
func replaceByError(ctx context.Context, device *blockdev.Device) error {
	control, table, err := mappingOf(device)
	if err != nil {
		return err
	}
	defer control.Close()
	if failsWholly(table) {
		return nil
	}
	if slices.ContainsFunc(table, func(t linux.MappingTarget) bool { return t.Type == "multipath" }) {
		return fmt.Errorf("%w: %s is a multipath device, which multipathd makes anew whenever a path changes; take its paths away instead",
			volume.ErrPrecondition, device)
	}
	var sectors uint64
	for _, target := range table {
		sectors = max(sectors, target.Start+target.Length)
	}
	if err := control.LoadTable(device.Number(), []linux.MappingTarget{{Length: sectors, Type: blockdev.ErrorTarget}}, false); err != nil {
		return fmt.Errorf("load an error target into %s: %w", device, err)
	}
	crashpoint.Here("error target loaded")
	waiting, cancel := context.WithTimeout(ctx, suspendLimit)
	defer cancel()
	if err := control.Suspend(waiting, device.Number()); err != nil {
		return errors.Join(suspendError(device, err), control.ClearTable(device.Number()))
	}
	crashpoint.Here("device suspended")
	if err := control.Resume(device.Number()); err != nil {
		return fmt.Errorf("put the error target of %s into effect: %w", device, err)
	}
	if table, err = control.Table(device.Number()); err != nil {
		return fmt.Errorf("table of %s: %w", device, err)
	}
	if !failsWholly(table) {
		return fmt.Errorf("%w: somebody has given %s another table again; see who does, and repeat it", volume.ErrAborted, device)
	}
	return nil
}

func suspendError(device *blockdev.Device, err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w: I/O on %s is under way and does not end; is its disk alive? Nothing was changed: %w", volume.ErrAborted, device, err)
	}
	return fmt.Errorf("suspend %s: %w", device, err)
}

// mappingOf returns the table of the mapping that a device is, and an open control
// device. Errors: volume.ErrPrecondition where it is none.
func mappingOf(device *blockdev.Device) (*linux.MapperControl, []linux.MappingTarget, error) {
	noMapping := fmt.Errorf("%w: %s is no device-mapper device (such as a logical volume, or an encrypted one), so nothing can take it from a process that has it open; end the process",
		volume.ErrPrecondition, device)
	control, err := linux.OpenMapper()
	var none *linux.MapperError
	if errors.As(err, &none) {
		return nil, nil, noMapping
	}
	if err != nil {
		return nil, nil, err
	}
	table, err := control.Table(device.Number())
	if err == nil {
		return control, table, nil
	}
	control.Close()
	if errors.Is(err, syscall.ENXIO) {
		return nil, nil, noMapping
	}
	return nil, nil, fmt.Errorf("table of %s: %w", device, err)
}

// failsWholly reports whether a table fails all I/O. One that has other rows beside its
// error targets, as that of a volume with a lost disk may, works in part.
func failsWholly(table []linux.MappingTarget) bool {
	return len(table) > 0 && !slices.ContainsFunc(table, func(t linux.MappingTarget) bool { return t.Type != blockdev.ErrorTarget })
}
