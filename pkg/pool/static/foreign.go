package static

import (
	"context"
	"errors"
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// CheckForeign returns an error where one of the layers is a disk with the claim of a
// pool of disks, be it one that the node's configuration no longer has. The claim can be
// written by whoever has the disk, and only refuses; what a pool of the configuration
// has, that pool knows by itself.
//
// It reads the disks. Errors: volume.ErrInUse; those of the disk where its table cannot
// be read, since nobody can say then whose it is.
func (p *Pool) CheckForeign(_ context.Context, layers []blockdev.Layer) error {
	for _, layer := range layers {
		if layer.IsPartition {
			continue
		}
		pool, claimed, err := p.claimant(layer)
		if errors.Is(err, volume.ErrNotFound) || errors.Is(err, gpt.ErrDamaged) {
			continue // It has gone meanwhile, or nothing says whose it is.
		}
		if err != nil {
			return fmt.Errorf("see whether disk %s is one of a pool: %w", layer.Number, err)
		}
		if claimed {
			return fmt.Errorf("%w: it is, lies on or carries something of disk %s, whose partition table says that it belongs to the pool %s; if there is no such pool any more, and nobody needs what is on the disk, wipe it (rawblockctl wipe)",
				volume.ErrInUse, layer.Number, pool)
		}
	}
	return nil
}

func (p *Pool) claimant(layer blockdev.Layer) (pool string, claimed bool, err error) {
	disk, err := blockdev.OpenNumber(layer.Number, p.sysfs)
	if err != nil {
		return "", false, err
	}
	defer disk.Close()
	raw, err := disk.Raw(0)
	if err != nil {
		return "", false, err
	}
	defer raw.Close()
	return gpt.ClaimantOf(raw)
}
