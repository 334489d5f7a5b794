package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Expand grows a volume; see driver's expander. What it grows by reads zero. That of a
// thick volume is wiped first, which may take longer than the caller waits.
func (p *Pool) Expand(ctx context.Context, name string, size volume.Range) (uint64, error) {
	// A call for another size does not join, but finds the volume busy.
	key := fmt.Sprintf("expansion of volume %s from %d to %d bytes", name, size.Required, size.Limit)
	e, err := p.once(ctx, key, func(ctx context.Context) (entry, error) { return p.expand(ctx, name, size) })
	return e.Size, err
}

func (p *Pool) expand(ctx context.Context, name string, size volume.Range) (e entry, err error) {
	unlock, err := p.busy.Lock("volume " + name)
	if err != nil {
		return entry{}, err
	}
	defer unlock()
	space := label(p.options.VolumeGroup, p.name, spaceKind, "grow."+name)
	end := func() {}
	defer func() { end() }()
	var want uint64
	wiping := false
	err = p.change(ctx, func(ctx context.Context, g group) (err error) {
		if e, err = g.whole(volumeKind, name); err != nil {
			return err
		}
		if want, err = size.Choose(e.Size, e.Size, g.ExtentSize); err != nil {
			return fmt.Errorf("volume %s has %d bytes and does not shrink: %w", name, e.Size, err)
		}
		if want == e.Size {
			return p.align(ctx, g.Group, e)
		}
		if err := p.requireGrowth(ctx, &g, e, want); err != nil {
			return err
		}
		if e.Pool != "" || e.wipe == wipeNone {
			return p.grow(ctx, g.Group, e, want)
		}
		wiping, end = true, p.begin(space)
		return p.reserve(ctx, &g, e, space, want-e.Size)
	})
	if err == nil && wiping {
		err = p.growWiped(ctx, name, space, want)
	}
	e.Size = want
	return e, err
}

// requireGrowth returns an error unless a volume can grow to a size.
func (p *Pool) requireGrowth(ctx context.Context, g *group, e entry, size uint64) error {
	r := thickRoom(g)
	if e.Pool != "" {
		pool, err := p.thinPool(ctx, g)
		if err != nil {
			return err
		}
		r = p.thinRoom(g, pool)
	}
	if err := r.require(p.name, size, size-e.Size); err != nil {
		return fmt.Errorf("grow volume %s from %d to %d bytes: %w", e.name, e.Size, size, err)
	}
	return nil
}

// align makes the device of a volume as large as the volume, where a call that was cut
// off has left it smaller.
func (p *Pool) align(ctx context.Context, g lvm.Group, e entry) error {
	opened, err := p.open(deviceOf(g, e))
	switch {
	case errors.Is(err, errInactive), errors.Is(err, errRevoked), errors.Is(err, errStale):
		return nil // It is made with its size.
	case errors.Is(err, errSuspended):
		return p.lvm.Refresh(ctx, g.Name, e.UUID)
	case err != nil:
		return err
	}
	opened.Close()
	if opened.Size() == e.Size {
		return nil
	}
	return p.lvm.Refresh(ctx, g.Name, e.UUID)
}

// grow grows a logical volume, and its device. Errors: volume.ErrInUse where its table
// was taken away: LVM would give it back.
func (p *Pool) grow(ctx context.Context, g lvm.Group, e entry, size uint64, extents ...string) error {
	opened, err := p.open(deviceOf(g, e))
	switch {
	case err == nil:
		opened.Close()
	case errors.Is(err, errRevoked):
		return fmt.Errorf("%w: volume %s of pool %s: %w; it can grow once nobody has it open", volume.ErrInUse, e.name, p.name, err)
	case !errors.Is(err, errInactive) && !errors.Is(err, errSuspended):
		return err
	}
	if err := p.lvm.Extend(ctx, g.Name, e.Name, size, extents...); err != nil {
		return fmt.Errorf("grow volume %s of pool %s: %w", e.name, p.name, err)
	}
	crashpoint.Here("logical volume grown")
	return nil
}

// reserve takes extents for a volume to grow by, as a logical volume of their own.
func (p *Pool) reserve(ctx context.Context, g *group, e entry, name string, size uint64) error {
	if err := g.checkName(name); err != nil {
		return err
	}
	what := record{kind: spaceKind, making: true, wipe: e.wipe}
	if err := p.lvm.CreateLinear(ctx, g.Name, lvm.Attributes{Name: name, Tags: what.tags(p.name), Size: size}); err != nil {
		return fmt.Errorf("take extents for volume %s of pool %s: %w", e.name, p.name, err)
	}
	crashpoint.Here("extents taken")
	return nil
}

// growWiped wipes the extents that were taken for a volume, and gives them to it.
// Between the two they are free for an instant: nobody else of the pool can have them,
// and if another program does, the volume does not grow.
func (p *Pool) growWiped(ctx context.Context, name, space string, size uint64) error {
	g, err := p.look(ctx)
	if err != nil {
		return err
	}
	taken, err := g.named(space)
	if err != nil {
		return err
	}
	blankErr := p.blank(ctx, g.Group, taken)
	return p.change(context.WithoutCancel(ctx), func(ctx context.Context, g group) error {
		if err := errors.Join(blankErr, p.remove(ctx, g.Group, taken)); err != nil {
			return err
		}
		e, err := g.whole(volumeKind, name)
		if err != nil {
			return err
		}
		return p.grow(ctx, g.Group, e, size, taken.Extents...)
	})
}

// named returns what is there under the name of a logical volume.
func (g *group) named(name string) (entry, error) {
	i := slices.IndexFunc(g.entries, func(e entry) bool { return e.Name == name })
	if i < 0 {
		return entry{}, fmt.Errorf("%w: the logical volume %s/%s has gone", volume.ErrNotFound, g.Name, name)
	}
	return g.entries[i], nil
}
