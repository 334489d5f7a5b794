package lvm

import (
	"context"
	"errors"
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// copy makes a volume that begins as a snapshot or as another volume. Where it is to be
// larger it is not whole yet; what it has beyond that reads zero.
func (p *Pool) copy(ctx context.Context, g *group, spec volume.Spec, what record) (entry, error) {
	from, err := g.source(spec.Source)
	if err != nil {
		return entry{}, err
	}
	if from.encryption != spec.Encryption {
		return entry{}, fmt.Errorf("%w: the encryption of %s %s is %q, and that of its copy cannot be %q", volume.ErrInvalid, from.kind, from.name, from.encryption, spec.Encryption)
	}
	r, err := p.room(ctx, g)
	if err != nil {
		return entry{}, err
	}
	size, err := spec.Size.Choose(from.Size, from.Size, r.unit)
	if err != nil {
		return entry{}, err
	}
	if err := r.require(p.name, size, size); err != nil {
		return entry{}, err
	}
	what.making = size > from.Size
	made, err := p.snapshot(ctx, g, from, what)
	made.Size = size
	return made, err
}

// source returns what a volume is to be made from. Errors: volume.ErrNotFound.
func (g *group) source(source volume.Source) (entry, error) {
	kind, name := snapshotKind, source.Snapshot
	if source.Volume != "" {
		kind, name = volumeKind, source.Volume
	}
	e, err := g.whole(kind, name)
	if err != nil {
		return entry{}, fmt.Errorf("source: %w", err)
	}
	if e.Pool == "" {
		return entry{}, fmt.Errorf("%w: %s %s is a thick logical volume, of which there are no copies", volume.ErrInvalid, kind, name)
	}
	return e, nil
}

// snapshot makes a logical volume that begins as another one, which may be in use: it
// is what a power cut would have left. What was written before to the device, and is in
// its page cache, is part of it.
func (p *Pool) snapshot(ctx context.Context, g *group, from entry, what record) (entry, error) {
	name := label(g.Name, p.name, what.kind, what.name)
	if err := g.checkName(name); err != nil {
		return entry{}, err
	}
	if err := p.flush(g.Group, from); err != nil {
		return entry{}, err
	}
	attributes := lvm.Attributes{Name: name, Tags: what.tags(p.name), ReadOnly: what.kind == snapshotKind}
	if err := p.lvm.Snapshot(ctx, g.Name, from.Name, attributes); err != nil {
		return entry{}, fmt.Errorf("make %s %s of pool %s: %w", what.kind, what.name, p.name, err)
	}
	crashpoint.Here("copy made")
	return entry{Volume: lvm.Volume{Name: name, Size: from.Size, Pool: from.Pool}, record: what}, nil
}

// flush writes out what the page cache holds of a volume that has a device. Errors:
// volume.ErrInUse where its table was taken away: LVM would give it back.
func (p *Pool) flush(g lvm.Group, e entry) error {
	device, err := p.open(deviceOf(g, e))
	switch {
	case errors.Is(err, errInactive):
		return nil
	case errors.Is(err, errRevoked):
		return fmt.Errorf("%w: %w; it can be copied again once nobody has it open", volume.ErrInUse, err)
	case err != nil:
		return err
	}
	defer device.Close()
	return device.Flush()
}
