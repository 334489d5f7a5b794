package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Create makes a volume; see driver.Pool. The extents of a thick one are wiped first,
// which may take longer than the caller waits.
func (p *Pool) Create(ctx context.Context, spec volume.Spec) (volume.Info, error) {
	method, err := p.parameters(spec.Parameters)
	if err != nil {
		return volume.Info{}, err
	}
	if !spec.Encryption.Known() {
		return volume.Info{}, fmt.Errorf("%w: encryption %q is unknown", volume.ErrInvalid, spec.Encryption)
	}
	if spec.Source != (volume.Source{}) && p.options.ThinPool == "" {
		return volume.Info{}, fmt.Errorf("%w: a pool of thick logical volumes has no snapshots and clones; use one with a thin pool, or a pool of files", volume.ErrInvalid)
	}
	create := func(ctx context.Context) (entry, error) { return p.create(ctx, spec, method) }
	e, err := p.once(ctx, "volume "+spec.Name, create)
	if err != nil {
		return volume.Info{}, elsewhere(err)
	}
	// Who asked first may have asked for something else.
	if err := e.compatible(spec, method); err != nil {
		return volume.Info{}, err
	}
	return e.info(), nil
}

func (p *Pool) get(ctx context.Context, name string) (entry, error) {
	g, err := p.look(ctx)
	if err != nil {
		return entry{}, err
	}
	return g.whole(volumeKind, name)
}

func (e *entry) info() volume.Info {
	return volume.Info{Name: e.name, Size: e.Size, Source: e.source, Encryption: e.encryption}
}

// compatible returns an error where a volume is not what is asked for. Errors:
// volume.ErrIncompatible.
func (e *entry) compatible(spec volume.Spec, method wipe) error {
	switch {
	case !spec.Size.Contains(e.Size):
		return fmt.Errorf("%w: volume %s has %d bytes, and was asked for with %d to %d", volume.ErrIncompatible, e.name, e.Size, spec.Size.Required, spec.Size.Limit)
	case e.source != spec.Source:
		return fmt.Errorf("%w: volume %s was made from %+v, not %+v", volume.ErrIncompatible, e.name, e.source, spec.Source)
	case e.encryption != spec.Encryption:
		return fmt.Errorf("%w: volume %s has the encryption %q, not %q", volume.ErrIncompatible, e.name, e.encryption, spec.Encryption)
	case e.wipe != method:
		return fmt.Errorf("%w: volume %s has %s %s, not %s", volume.ErrIncompatible, e.name, WipeParameter, e.wipe, method)
	}
	return nil
}

// create returns the volume that is there, or makes it.
func (p *Pool) create(ctx context.Context, spec volume.Spec, method wipe) (entry, error) {
	names := []string{"volume " + spec.Name}
	if spec.Source.Volume != "" {
		names = append(names, "volume "+spec.Source.Volume)
	}
	if spec.Source.Snapshot != "" {
		names = append(names, "snapshot "+spec.Source.Snapshot)
	}
	unlock, err := p.busy.Lock(names...)
	if err != nil {
		return entry{}, err
	}
	defer unlock()
	what := record{kind: volumeKind, name: spec.Name, source: spec.Source, wipe: method, encryption: spec.Encryption}
	end := func() {}
	defer func() { end() }()
	var made entry
	err = p.change(ctx, func(ctx context.Context, g group) (err error) {
		if made, err = g.find(what.kind, what.name); !errors.Is(err, volume.ErrNotFound) {
			return err
		}
		end = p.begin(label(g.Name, p.name, what.kind, what.name))
		if spec.Source != (volume.Source{}) {
			made, err = p.copy(ctx, &g, spec, what)
			return err
		}
		what.making = p.options.ThinPool == "" && method != wipeNone
		made, err = p.allocate(ctx, &g, spec.Size, what)
		return err
	})
	if err != nil || !made.making {
		return made, err
	}
	return p.finish(ctx, made)
}

// allocate makes the logical volume of a volume that is a copy of nothing.
func (p *Pool) allocate(ctx context.Context, g *group, size volume.Range, what record) (entry, error) {
	r, err := p.room(ctx, g)
	if err != nil {
		return entry{}, err
	}
	bytes, err := size.Choose(r.unit, min(preferredSize, r.left), r.unit)
	if err != nil {
		return entry{}, err
	}
	if err := r.require(p.name, bytes, bytes); err != nil {
		return entry{}, err
	}
	name := label(g.Name, p.name, what.kind, what.name)
	if err := g.checkName(name); err != nil {
		return entry{}, err
	}
	attributes := lvm.Attributes{Name: name, Tags: what.tags(p.name), Size: bytes}
	if p.options.ThinPool == "" {
		err = p.lvm.CreateLinear(ctx, g.Name, attributes)
	} else {
		err = p.lvm.CreateThin(ctx, g.Name, p.options.ThinPool, attributes)
	}
	if err != nil {
		return entry{}, fmt.Errorf("make %s %s of pool %s: %w", what.kind, what.name, p.name, err)
	}
	crashpoint.Here("logical volume made")
	return entry{Volume: lvm.Volume{Name: name, Size: bytes, Pool: p.options.ThinPool}, record: what}, nil
}

// finish makes a volume whole that is not yet: a thick one is wiped before anybody sees
// it, a copy that is to be larger grows. Of what fails nothing is left.
func (p *Pool) finish(ctx context.Context, made entry) (entry, error) {
	g, err := p.look(ctx)
	if err != nil {
		return entry{}, err
	}
	e, err := g.named(made.Name)
	if err != nil {
		return entry{}, err
	}
	if e.Pool == "" {
		err = p.blank(ctx, g.Group, e)
	} else {
		err = p.inTurn(ctx, func(ctx context.Context) error { return p.lvm.Extend(ctx, g.Name, e.Name, made.Size) })
		crashpoint.Here("copy grown")
	}
	whole := made.record
	whole.making = false
	err = p.inTurn(context.WithoutCancel(ctx), func(ctx context.Context) error {
		if err != nil {
			return errors.Join(err, p.remove(ctx, g.Group, e))
		}
		return p.retag(ctx, g.Group, e, whole)
	})
	crashpoint.Here("logical volume shown")
	e.record, e.Size = whole, made.Size
	return e, err
}

// Get returns a volume; see driver.Pool. Of one that has its device, no program is asked:
// the size is that of the device, and the rest is as it was made.
func (p *Pool) Get(ctx context.Context, name string) (volume.Info, error) {
	if info, opened, ok := p.openKnown(name); ok {
		opened.Close()
		return info, nil
	}
	e, err := p.get(ctx, name)
	if err != nil {
		return volume.Info{}, err
	}
	return e.info(), nil
}

// List returns all volumes; see driver.Pool. Where the volume group is not there, there
// is none.
func (p *Pool) List(ctx context.Context) ([]volume.Info, error) {
	g, err := p.look(ctx)
	if errors.Is(err, volume.ErrNotFound) { // The volume group.
		p.note(err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return g.infos(ctx), nil
}

// infos returns the volumes that are whole.
func (g *group) infos(ctx context.Context) []volume.Info {
	var found []volume.Info
	for _, e := range g.entries {
		switch {
		case e.kind != volumeKind || e.making:
		case e.err != nil: // One that cannot be understood does not hide the others.
			klog.FromContext(ctx).Error(e.err, "Cannot list a volume", "pool", g.pool, "name", e.name)
		default:
			found = append(found, e.info())
		}
	}
	return found
}

// Delete removes a volume; see driver.Pool. A thick one is wiped in the background, and
// its extents are free after that. Volumes and snapshots that were made from it stay.
func (p *Pool) Delete(ctx context.Context, name string) error {
	unlock, err := p.busy.Lock("volume " + name)
	if err != nil {
		return err
	}
	defer unlock()
	err = p.change(ctx, func(ctx context.Context, g group) error {
		e, err := g.find(volumeKind, name)
		if errors.Is(err, volume.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.Pool != "" || e.wipe == wipeNone || e.making {
			return p.remove(ctx, g.Group, e)
		}
		return p.release(ctx, &g, e)
	})
	if errors.As(err, new(unusableError)) && errors.Is(err, volume.ErrNotFound) { // Who knows what is on it.
		err = fmt.Errorf("%w: delete volume %s: %s", volume.ErrPrecondition, name, err.Error())
	}
	return err
}

// remove removes a logical volume and its device. Errors: volume.ErrInUse.
func (p *Pool) remove(ctx context.Context, g lvm.Group, e entry) error {
	if err := p.deactivate(ctx, g, e); err != nil {
		return err
	}
	if err := p.lvm.Remove(ctx, g.Name, e.UUID); err != nil {
		return fmt.Errorf("remove %s %s of pool %s: %w", e.kind, e.name, p.name, err)
	}
	crashpoint.Here("logical volume removed")
	p.forget(e.name)
	return nil
}

// release makes a volume that is deleted space that is to be wiped.
func (p *Pool) release(ctx context.Context, g *group, e entry) error {
	if err := p.deactivate(ctx, g.Group, e); err != nil {
		return err
	}
	// The name first: what has the tags of the volume is the volume, whatever its name.
	name := label(g.Name, p.name, spaceKind, e.UUID)
	if e.Name != name {
		if err := p.lvm.Rename(ctx, g.Name, e.Name, name); err != nil {
			return fmt.Errorf("delete volume %s of pool %s: %w", e.name, p.name, err)
		}
		crashpoint.Here("logical volume renamed")
	}
	space := record{kind: spaceKind, wipe: e.wipe}
	if err := p.retag(ctx, g.Group, e, space); err != nil {
		return fmt.Errorf("delete volume %s of pool %s: %w", e.name, p.name, err)
	}
	crashpoint.Here("logical volume released")
	p.forget(e.name)
	e.Name, e.record = name, space
	p.addWiping(e)
	p.startWiper(g.Group)
	return nil
}

// retag makes the tags of a logical volume those of a record.
func (p *Pool) retag(ctx context.Context, g lvm.Group, e entry, to record) error {
	before, after := e.tags(p.name), to.tags(p.name)
	without := func(tags, others []string) []string {
		return slices.DeleteFunc(slices.Clone(tags), func(t string) bool { return slices.Contains(others, t) })
	}
	return p.lvm.Retag(ctx, g.Name, e.UUID, without(before, after), without(after, before))
}
