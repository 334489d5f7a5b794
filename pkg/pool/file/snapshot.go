package file

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// CreateSnapshot makes a snapshot; see driver's snapshotter. Where files can share
// their data the volume may be in use: the snapshot is what a power cut would
// have left. Elsewhere it is a copy, of a volume that is not.
func (p *Pool) CreateSnapshot(ctx context.Context, name, of string) (volume.Snapshot, error) {
	create := func(ctx context.Context) error { return p.createSnapshot(ctx, name, of) }
	if err := p.once(ctx, "snapshot "+name, p.snapshot(name), create); err != nil {
		return volume.Snapshot{}, err
	}
	snapshot, err := p.GetSnapshot(ctx, name)
	if err == nil && snapshot.Volume != of {
		err = fmt.Errorf("%w: snapshot %s is of volume %s, not %s", volume.ErrIncompatible, name, snapshot.Volume, of)
	}
	return snapshot, err
}

func (p *Pool) createSnapshot(ctx context.Context, name, of string) error {
	unlock, err := p.lockSource(volume.Source{Snapshot: name})
	if err != nil {
		return err
	}
	defer unlock()
	unlockVolume, err := p.lockVolume(of)
	if err != nil {
		return err
	}
	defer unlockVolume()
	source, from, err := p.source(ctx, volume.Source{Volume: of})
	if err != nil {
		return err
	}
	return p.build(ctx, made{
		record:   record{BlockSize: source.BlockSize, Thin: source.Thin, Volume: of, Encryption: source.Encryption, Created: time.Now().UTC()},
		size:     source.size,
		from:     from,
		snapshot: true,
	}, p.snapshot(name))
}

// GetSnapshot returns a snapshot; see driver's snapshotter.
func (p *Pool) GetSnapshot(_ context.Context, name string) (volume.Snapshot, error) {
	r, info, err := p.snapshot(name).read()
	if err != nil {
		return volume.Snapshot{}, fmt.Errorf("snapshot %s of pool %s: %w", name, p.name, err)
	}
	return volume.Snapshot{Name: name, Volume: r.Volume, Size: info.Size, Created: r.Created, Encryption: r.Encryption}, nil
}

// DeleteSnapshot removes a snapshot; see driver's snapshotter. Volumes that were
// made from it stay.
func (p *Pool) DeleteSnapshot(ctx context.Context, name string) error {
	unlock, err := p.lockSource(volume.Source{Snapshot: name})
	if err != nil {
		return err
	}
	defer unlock()
	return p.discard(ctx, p.snapshot(name))
}

// ListSnapshots returns all snapshots; see driver's snapshotter.
func (p *Pool) ListSnapshots(ctx context.Context) ([]volume.Snapshot, error) {
	names, err := list(p.snapshots())
	if err != nil {
		return nil, err
	}
	var snapshots []volume.Snapshot
	for _, name := range names {
		snapshot, err := p.GetSnapshot(ctx, name)
		if errors.Is(err, volume.ErrNotFound) {
			continue // It has gone meanwhile.
		}
		if err != nil {
			klog.FromContext(ctx).Error(err, "Cannot list a snapshot", "pool", p.name, "name", name)
			continue
		}
		snapshots = append(snapshots, snapshot)
	}
	return snapshots, nil
}
