package lvm

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Activate returns the device of a volume; see driver.Pool. For one that is
// active, its device is found without a program.
func (p *Pool) Activate(ctx context.Context, name string) (*blockdev.Device, error) {
	unlock, err := p.busy.Lock("volume " + name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, opened, ok := p.openKnown(name); ok {
		return opened, nil
	}
	g, err := p.look(ctx)
	if err != nil {
		return nil, err
	}
	e, err := g.whole(volumeKind, name)
	if err != nil {
		return nil, err
	}
	if e.Partial {
		return nil, fmt.Errorf("%w: a disk of volume %s, of volume group %s, has gone", volume.ErrNotFound, name, g.Name)
	}
	opened, err := p.makeDevice(ctx, g.Group, e)
	if err != nil {
		return nil, fmt.Errorf("volume %s of pool %s: %w", name, p.name, err)
	}
	p.remember(active{deviceOf(g.Group, e), e.info()})
	return opened, nil
}

// makeDevice opens the device of a logical volume, which it makes or mends where there
// is none that works.
func (p *Pool) makeDevice(ctx context.Context, g lvm.Group, e entry) (*blockdev.Device, error) {
	d := deviceOf(g, e)
	opened, err := p.open(d)
	var mend func(context.Context) error
	switch {
	case errors.Is(err, errInactive), errors.Is(err, errRevoked), errors.Is(err, errStale):
		mend = func(ctx context.Context) error { return p.remake(ctx, g, e) }
	case errors.Is(err, errSuspended):
		// A program that was killed has left it so, or is about to end.
		mend = func(ctx context.Context) error { return p.lvm.Refresh(ctx, g.Name, e.UUID) }
	default:
		return opened, err
	}
	if err := p.inTurn(ctx, mend); err != nil {
		return nil, err
	}
	return p.open(d)
}

// remake makes the device of a volume anew, upon a thin pool that works. The caller has
// its turn. Errors: volume.ErrInUse.
func (p *Pool) remake(ctx context.Context, g lvm.Group, e entry) error {
	if err := p.deactivate(ctx, g, e); err != nil {
		return err
	}
	for _, v := range g.Volumes {
		if v.Thin != nil && v.Name == e.Pool {
			if _, err := p.endStale(ctx, g, v); err != nil {
				return err
			}
		}
	}
	return p.lvm.Activate(ctx, g.Name, e.UUID)
}

// endStale removes the device of a thin pool that lies on a disk that has gone. Errors:
// volume.ErrInUse while volumes have theirs.
func (p *Pool) endStale(ctx context.Context, g lvm.Group, pool lvm.Volume) (ended bool, err error) {
	// What is below the devices of its volumes (lib/activate/dev_manager.c of lvm2).
	const layer = "-tpool"
	err = p.checkDevice(device{mappingName(g.Name, pool.Name) + layer, mappingUUID(g.UUID, pool.UUID) + layer})
	if !errors.Is(err, errStale) {
		return false, nil
	}
	if deactivateErr := p.lvm.Deactivate(ctx, g.Name, pool.UUID); deactivateErr != nil {
		return false, fmt.Errorf("%w: thin pool %s/%s: %w; end the pods that use its volumes: %w", volume.ErrInUse, g.Name, pool.Name, err, deactivateErr)
	}
	return true, nil
}

// Deactivate removes the device of a volume; see driver.Pool. One that somebody has open
// stays until the next call.
func (p *Pool) Deactivate(ctx context.Context, name string) error {
	unlock, err := p.busy.Lock("volume " + name)
	if err != nil {
		return err
	}
	defer unlock()
	if known, ok := p.recall(name); ok && !p.isActive(known.device) {
		return nil
	}
	err = p.inTurn(ctx, func(ctx context.Context) error {
		g, err := p.look(ctx)
		if err != nil {
			return err
		}
		e, err := g.find(volumeKind, name)
		if err != nil {
			return err
		}
		return p.deactivate(ctx, g.Group, e)
	})
	if errors.As(err, new(unusableError)) {
		err = p.removeStale(name)
	}
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case errors.Is(err, volume.ErrInUse):
		klog.FromContext(ctx).Info("The device of a volume stays, since it is open", "pool", p.name, "name", name, "reason", err)
		return nil
	}
	return err
}

// removeStale removes the device of a volume whose disks have gone: lvm does not see the
// volume group any more. Errors: volume.ErrInUse.
//
//nolint:contextcheck // The kernel answers at once.
func (p *Pool) removeStale(name string) error {
	known, ok := p.recall(name)
	if !ok {
		return nil
	}
	opened, err := p.open(known.device)
	if err == nil {
		opened.Close()
	}
	if !errors.Is(err, errStale) {
		return nil
	}
	control, err := openMapper()
	if err != nil {
		return err
	}
	defer control.Close()
	info, err := known.find(control)
	if errors.Is(err, errInactive) {
		return nil
	}
	if err != nil {
		return err
	}
	return known.remove(control, info)
}

// isActive reports whether there may be a device.
func (p *Pool) isActive(d device) bool {
	control, err := openMapper()
	if err != nil {
		return true
	}
	defer control.Close()
	_, err = d.find(control)
	return !errors.Is(err, errInactive)
}

// deactivate removes the device of a logical volume, where it has one. The caller has
// its turn. Errors: volume.ErrInUse.
func (p *Pool) deactivate(ctx context.Context, g lvm.Group, e entry) error {
	d := deviceOf(g, e)
	control, err := openMapper()
	if err != nil {
		return err
	}
	defer control.Close()
	info, err := d.find(control)
	if errors.Is(err, errInactive) {
		return nil
	}
	if err != nil {
		return err
	}
	if user := p.user(info); user != nil {
		return user
	}
	// A mount of its node does not keep it, and records can be lost.
	if err := p.sysfs.CheckUnpublished(info.Number); err != nil {
		return fmt.Errorf("device %s: %w", d.name, err)
	}
	if err := p.checkTable(control, info.Number); errors.Is(err, errRevoked) || errors.Is(err, errStale) {
		return d.remove(control, info) // lvm looks for what its table should have.
	}
	err = p.lvm.Deactivate(ctx, g.Name, e.UUID)
	if err == nil {
		return nil
	}
	if info, findErr := d.find(control); findErr == nil && info.Opened > 0 {
		return fmt.Errorf("%w: device %s is open: %w", volume.ErrInUse, d.name, err)
	}
	return fmt.Errorf("deactivate %s: %w", d.name, err)
}

// user returns an error that says who has a device claimed, if anybody does. Who has it
// open without a claim, lvm finds.
func (p *Pool) user(info linux.MappingInfo) error {
	if info.Opened == 0 {
		return nil
	}
	opened, err := blockdev.OpenNumber(info.Number, p.sysfs)
	if err != nil {
		return nil //nolint:nilerr // It has gone; lvm says so.
	}
	defer opened.Close()
	if err := opened.CheckFree(); errors.Is(err, volume.ErrInUse) {
		return err
	}
	return nil
}

// active is a volume that has, or had, its device.
type active struct {
	device
	info volume.Info // The size is that of the time when the device was made.
}

// openKnown opens the device of a volume that was activated before, if it is there and
// works.
func (p *Pool) openKnown(name string) (volume.Info, *blockdev.Device, bool) {
	known, ok := p.recall(name)
	if !ok {
		return volume.Info{}, nil, false
	}
	opened, err := p.open(known.device)
	if err != nil {
		return volume.Info{}, nil, false
	}
	known.info.Size = opened.Size()
	return known.info, opened, true
}

func (p *Pool) recall(name string) (active, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok := p.known[name]
	return known, ok
}

func (p *Pool) remember(known active) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[known.info.Name] = known
}

// forget forgets a volume that was deleted.
func (p *Pool) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, name)
	p.status.entries = maps.Clone(p.status.entries) // Others may have the old one.
	delete(p.status.entries, name)
}
