package disk

import (
	"context"
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// CheckForeign returns an error where one of the layers is a disk of the pool, or one that
// its configuration gives to it; see driver's owner. The latter counts also while there is
// data on it, or it cannot be read: once it is blank it is the pool's, and what says
// whose it is stands on it, where who has the whole disk can write it.
func (p *Pool) CheckForeign(_ context.Context, layers []blockdev.Layer) error {
	chosen, _, err := candidates(p.sysfs, p.options.Match, p.options.Exclude)
	if err != nil {
		return err
	}
	// A disk that the selector no longer chooses is the pool's until that has seen it.
	for _, disk := range append(chosen, p.known.Load().disks...) {
		for _, layer := range layers {
			if layer.Number == disk.Number && layer.DiskSeq == disk.DiskSeq {
				return fmt.Errorf("%w: it is, lies on or carries something of %s, a disk of pool %s by the node's configuration; a PersistentVolume cannot name it (pools[].disk.exclude takes a disk out of a pool)",
					volume.ErrInUse, disk.NodePath, p.name)
			}
		}
	}
	return nil
}
