package lvm

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

const (
	// maxData is how much of a thin pool may be used, in percent, while more is promised
	// than it has: the rest is for what was promised before.
	maxData = 95
	// maxMetadata is the same for its metadata, which a copy makes grow more the more is
	// written after it. lvcreate itself refuses at 75 % where the metadata is small
	// (thin_pool_metadata_min_threshold in lib/metadata/thin_manip.c of lvm2).
	maxMetadata = 75
)

// preferredSize is the size in bytes of a volume for which none is required, where
// there is so much.
const preferredSize = 1 << 30

// room is what can be made now, in bytes.
type room struct {
	// left is the most that can be given, most what an empty pool could give, unit what
	// sizes are multiples of.
	left, most, unit uint64
	// why says what else there would be, for a message.
	why string
}

// require returns an error unless so many bytes more can be given to a volume that
// then has a size.
func (r room) require(pool string, size, more uint64) error {
	if size > r.most {
		return fmt.Errorf("%w: %d bytes are more than pool %s can hold when it is empty, %d", volume.ErrOutOfRange, size, pool, r.most)
	}
	if more > r.left {
		return fmt.Errorf("%w: pool %s has %d bytes left on this node, not %d%s", volume.ErrExhausted, pool, r.left, more, r.why)
	}
	return nil
}

// thinPool returns the thin pool of a pool that has one, and makes its device where
// there is none: only then is known how full it is. The caller has its turn.
func (p *Pool) thinPool(ctx context.Context, g *group) (lvm.Volume, error) {
	pool, err := g.thinPool(p.options.ThinPool)
	if err != nil {
		return pool, unusable(err)
	}
	ended, err := p.endStale(ctx, g.Group, pool)
	if err != nil || pool.Thin.Active && !ended {
		return pool, err
	}
	if err := p.lvm.Activate(ctx, g.Name, pool.UUID); err != nil {
		return pool, fmt.Errorf("activate thin pool %s of volume group %s: %w", pool.Name, g.Name, err)
	}
	if *g, err = p.look(ctx); err != nil {
		return pool, err
	}
	pool, err = g.thinPool(p.options.ThinPool)
	return pool, unusable(err)
}

// capacity is nothing where nothing can be made.
func (r room) capacity() volume.Capacity {
	if r.left == 0 {
		return volume.Capacity{}
	}
	return volume.Capacity{Available: r.left, MaxVolume: r.left, MinVolume: r.unit}
}

// room returns what can be made. The caller has its turn.
func (p *Pool) room(ctx context.Context, g *group) (room, error) {
	if p.options.ThinPool == "" {
		return thickRoom(g), nil
	}
	pool, err := p.thinPool(ctx, g)
	if err != nil {
		return room{}, err
	}
	return p.thinRoom(g, pool), nil
}

func thickRoom(g *group) room {
	r := room{left: g.Free, most: g.Size, unit: g.ExtentSize}
	wiping := uint64(0)
	for _, e := range g.entries {
		if e.kind == spaceKind {
			wiping += e.Size
		}
	}
	if wiping > 0 {
		r.why = fmt.Sprintf("; %d are still being wiped", wiping)
	}
	return r
}

// thinRoom returns what a thin pool may still promise. What it has promised are the
// sizes of all its volumes and snapshots, whosever they are.
func (p *Pool) thinRoom(g *group, pool lvm.Volume) room {
	chunk, promised := pool.Thin.ChunkSize, uint64(0)
	for _, v := range g.Volumes {
		if v.Pool == pool.Name {
			promised += (v.Size + chunk - 1) / chunk * chunk
		}
	}
	limit := uint64(math.Min(float64(pool.Size)*p.options.Overcommit, math.MaxInt64))
	r := room{left: less(limit, promised), most: limit, unit: g.ExtentSize}
	switch {
	case pool.Thin.Metadata >= maxMetadata:
		r.left, r.why = 0, fmt.Sprintf("; %.0f %% of the metadata of thin pool %s/%s are used: lvextend --poolmetadatasize gives it more", pool.Thin.Metadata, g.Name, pool.Name)
	case pool.Thin.Data >= maxData && less(pool.Size, promised) < r.left:
		r.left, r.why = less(pool.Size, promised), fmt.Sprintf("; %.0f %% of thin pool %s/%s are used: lvextend gives it more", pool.Thin.Data, g.Name, pool.Name)
	}
	r.left = r.left / chunk * chunk / r.unit * r.unit
	return r
}

// less returns a - b, or 0 where b is more.
func less(a, b uint64) uint64 { return a - min(a, b) }

// Capacity returns what can be made with the parameters: nothing where the volume group
// cannot be used. Errors: volume.ErrInvalid.
func (p *Pool) Capacity(ctx context.Context, values map[string]string) (volume.Capacity, error) {
	if _, err := p.parameters(values); err != nil {
		return volume.Capacity{}, err
	}
	var capacity volume.Capacity
	err := p.change(ctx, func(ctx context.Context, g group) error {
		r, err := p.room(ctx, &g)
		capacity = r.capacity()
		return err
	})
	switch {
	case err == nil:
		p.note(nil)
	case errors.As(err, new(unusableError)):
		p.note(err)
		return volume.Capacity{}, nil
	}
	return capacity, err
}
