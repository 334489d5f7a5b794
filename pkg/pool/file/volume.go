package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Create makes a volume; see driver.Pool.
func (p *Pool) Create(ctx context.Context, spec volume.Spec) (volume.Info, error) {
	parameters, err := parseParameters(spec.Parameters)
	if err != nil {
		return volume.Info{}, err
	}
	if !spec.Encryption.Known() {
		return volume.Info{}, fmt.Errorf("%w: encryption %q is unknown", volume.ErrInvalid, spec.Encryption)
	}
	create := func(ctx context.Context) error { return p.create(ctx, spec, parameters) }
	if err := p.once(ctx, "volume "+spec.Name, p.volume(spec.Name), create); err != nil {
		return volume.Info{}, err
	}
	// Who asked first may have asked for something else.
	r, info, err := p.volume(spec.Name).read()
	if err != nil {
		return volume.Info{}, err
	}
	if err := compatible(r, info, spec, parameters); err != nil {
		return volume.Info{}, err
	}
	return r.info(spec.Name, info.Size), nil
}

// compatible returns an error where a volume is not what is asked for.
func compatible(r record, info linux.FileInfo, spec volume.Spec, wanted parameters) error {
	switch {
	case !spec.Size.Contains(info.Size):
		return fmt.Errorf("%w: volume %s has %d bytes, and was asked for with %d to %d",
			volume.ErrIncompatible, spec.Name, info.Size, spec.Size.Required, spec.Size.Limit)
	case r.source() != spec.Source:
		return fmt.Errorf("%w: volume %s was made from %+v, not %+v", volume.ErrIncompatible, spec.Name, r.source(), spec.Source)
	case r.Encryption != spec.Encryption:
		return fmt.Errorf("%w: volume %s has encryption %q, not %q", volume.ErrIncompatible, spec.Name, r.Encryption, spec.Encryption)
	case r.Thin != wanted.thin:
		return fmt.Errorf("%w: volume %s has thin=%t", volume.ErrIncompatible, spec.Name, r.Thin)
	case wanted.blockSize != 0 && r.BlockSize != wanted.blockSize:
		return fmt.Errorf("%w: volume %s has blockSize=%d", volume.ErrIncompatible, spec.Name, r.BlockSize)
	}
	return nil
}

func (p *Pool) create(ctx context.Context, spec volume.Spec, wanted parameters) error {
	unlock, err := p.lockVolume(spec.Name)
	if err != nil {
		return err
	}
	defer unlock()
	unlockSource, err := p.lockSource(spec.Source)
	if err != nil {
		return err
	}
	defer unlockSource()
	what, err := p.plan(ctx, spec, wanted)
	if err != nil {
		return err
	}
	return p.build(ctx, what, p.volume(spec.Name))
}

// plan says what to make for a spec.
func (p *Pool) plan(ctx context.Context, spec volume.Spec, wanted parameters) (what made, err error) {
	what.record = record{
		BlockSize: cmp.Or(wanted.blockSize, defaultBlockSize), Thin: wanted.thin, Created: time.Now().UTC(),
		Snapshot: spec.Source.Snapshot, Volume: spec.Source.Volume, Encryption: spec.Encryption,
	}
	minimum, preferred := uint64(sizeUnit), uint64(preferredSize)
	if spec.Source != (volume.Source{}) {
		source, from, err := p.source(ctx, spec.Source)
		if err != nil {
			return made{}, err
		}
		if wanted.blockSize != 0 && wanted.blockSize != source.BlockSize {
			return made{}, fmt.Errorf("%w: parameter %s is %d, but what the volume is to be made from has blocks of %d bytes; leave it out, or use a StorageClass with the same",
				volume.ErrInvalid, BlockSizeParameter, wanted.blockSize, source.BlockSize)
		}
		if source.Encryption != spec.Encryption {
			return made{}, fmt.Errorf("%w: what the volume is to be made from has encryption %q, not %q, and a copy has the same; use a StorageClass with it",
				volume.ErrInvalid, source.Encryption, spec.Encryption)
		}
		what.from, what.BlockSize = from, source.BlockSize
		minimum, preferred = source.size, source.size
	}
	what.size, err = spec.Size.Choose(minimum, preferred, sizeUnit)
	return what, err
}

// source opens what a volume is to be made from.
func (p *Pool) source(ctx context.Context, source volume.Source) (made, *entry, error) {
	e, kind, name := p.snapshot(source.Snapshot), "snapshot", source.Snapshot
	if source.Volume != "" {
		e, kind, name = p.volume(source.Volume), "volume", source.Volume
	}
	r, info, err := e.read()
	if err != nil {
		return made{}, nil, fmt.Errorf("source %s %s of pool %s: %w", kind, name, p.name, err)
	}
	if source.Volume != "" {
		if err := p.settle(ctx, source.Volume); err != nil {
			return made{}, nil, err
		}
	}
	return made{record: r, size: info.Size}, &e, nil
}

// settle makes the file of a volume hold all that was written to its device, or
// returns an error where it cannot be copied at one point in time. Errors:
// volume.ErrInUse.
func (p *Pool) settle(ctx context.Context, name string) error {
	data, err := linux.OpenPath(p.volume(name).data())
	if err != nil {
		return err
	}
	defer data.Close()
	device, found, err := p.loops.Find(data)
	if err != nil || !found {
		return err
	}
	defer device.Close()
	if !p.reflink {
		return fmt.Errorf("%w: volume %s is staged as %s, and the filesystem of pool %s cannot share blocks (reflink), so a copy of it would mix different times; end the pods that use it, or put the pool on XFS or btrfs",
			volume.ErrInUse, name, device, p.name)
	}
	klog.FromContext(ctx).V(2).Info("Copying a volume in use, as a power cut would leave it", "pool", p.name, "name", name)
	return device.Flush()
}

// Get returns a volume; see driver.Pool.
func (p *Pool) Get(_ context.Context, name string) (volume.Info, error) {
	r, info, err := p.volume(name).read()
	if err != nil {
		return volume.Info{}, fmt.Errorf("volume %s of pool %s: %w", name, p.name, err)
	}
	return r.info(name, info.Size), nil
}

// List returns all volumes; see driver.Pool.
func (p *Pool) List(ctx context.Context) ([]volume.Info, error) {
	names, err := list(p.volumes())
	if err != nil {
		return nil, err
	}
	var volumes []volume.Info
	for _, name := range names {
		info, err := p.Get(ctx, name)
		if errors.Is(err, volume.ErrNotFound) {
			continue // It has gone meanwhile.
		}
		if err != nil {
			// One that is damaged does not hide the others.
			klog.FromContext(ctx).Error(err, "Cannot list a volume", "pool", p.name, "name", name)
			continue
		}
		volumes = append(volumes, info)
	}
	return volumes, nil
}

// Delete removes a volume; see driver.Pool. Volumes and snapshots that were made
// from it stay.
func (p *Pool) Delete(ctx context.Context, name string) error {
	unlock, err := p.lockVolume(name)
	if err != nil {
		return err
	}
	defer unlock()
	e := p.volume(name)
	// Without a pod, a device is a leftover of a call that did not end.
	inUse, err := p.detach(ctx, e)
	if err != nil {
		return err
	}
	if inUse {
		return fmt.Errorf("delete volume %s of pool %s: %w", name, p.name, p.user(e))
	}
	return p.discard(ctx, e)
}
