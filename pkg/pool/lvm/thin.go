package lvm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// ThinPool is a Pool in a thin pool, which also makes snapshots.
type ThinPool struct{ *Pool }

// NewThin opens a pool in a thin pool. Errors: those of New.
func NewThin(ctx context.Context, name string, options Options, programs lvm.Programs, sysfs blockdev.Sysfs) (ThinPool, error) {
	if err := lvm.CheckName(options.ThinPool); err != nil {
		return ThinPool{}, fmt.Errorf("thin pool: %w", err)
	}
	p, err := New(ctx, name, options, programs, sysfs)
	return ThinPool{p}, err
}

// CreateSnapshot makes a snapshot; see driver's snapshotter. The volume may be in use.
func (p ThinPool) CreateSnapshot(ctx context.Context, name, of string) (volume.Snapshot, error) {
	create := func(ctx context.Context) (entry, error) { return p.createSnapshot(ctx, name, of) }
	e, err := p.once(ctx, "snapshot "+name, create)
	if err == nil && e.of != of {
		err = fmt.Errorf("%w: snapshot %s is of volume %s, not %s", volume.ErrIncompatible, name, e.of, of)
	}
	return e.shown(), err
}

// createSnapshot returns the snapshot that is there, or makes it.
func (p *Pool) createSnapshot(ctx context.Context, name, of string) (made entry, err error) {
	unlock, err := p.busy.Lock("snapshot "+name, "volume "+of)
	if err != nil {
		return entry{}, err
	}
	defer unlock()
	err = p.change(ctx, func(ctx context.Context, g group) (err error) {
		if made, err = g.find(snapshotKind, name); !errors.Is(err, volume.ErrNotFound) {
			return err
		}
		from, err := g.source(volume.Source{Volume: of})
		if err != nil {
			return err
		}
		r, err := p.room(ctx, &g)
		if err != nil {
			return err
		}
		if err := r.require(p.name, from.Size, from.Size); err != nil {
			return err
		}
		// To the second, as in the tag.
		now := time.Now().UTC().Truncate(time.Second)
		made, err = p.snapshot(ctx, &g, from, record{kind: snapshotKind, name: name, of: of, created: now, encryption: from.encryption})
		return err
	})
	return made, err
}

// GetSnapshot returns a snapshot; see driver's snapshotter.
func (p ThinPool) GetSnapshot(ctx context.Context, name string) (volume.Snapshot, error) {
	g, err := p.look(ctx)
	if err != nil {
		return volume.Snapshot{}, err
	}
	e, err := g.whole(snapshotKind, name)
	return e.shown(), err
}

func (e *entry) shown() volume.Snapshot {
	return volume.Snapshot{Name: e.name, Volume: e.of, Size: e.Size, Created: e.created, Encryption: e.encryption}
}

// DeleteSnapshot removes a snapshot; see driver's snapshotter. Volumes that were made
// from it stay.
func (p ThinPool) DeleteSnapshot(ctx context.Context, name string) error {
	unlock, err := p.busy.Lock("snapshot " + name)
	if err != nil {
		return err
	}
	defer unlock()
	return p.change(ctx, func(ctx context.Context, g group) error {
		e, err := g.find(snapshotKind, name)
		if errors.Is(err, volume.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return p.remove(ctx, g.Group, e)
	})
}

// ListSnapshots returns all snapshots; see driver's snapshotter.
func (p ThinPool) ListSnapshots(ctx context.Context) ([]volume.Snapshot, error) {
	g, err := p.look(ctx)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []volume.Snapshot
	for _, e := range g.entries {
		if e.kind == snapshotKind && !e.making && e.err == nil {
			found = append(found, e.shown())
		}
	}
	return found, nil
}
