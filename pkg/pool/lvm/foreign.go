package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// CheckForeign returns an error where one of the layers is the device of a logical volume
// of the pool, of whatever kind, or a disk of its volume group; see driver's owner. It
// asks lvm. A logical volume of the group that is not the pool's is the administrator's.
func (p *Pool) CheckForeign(ctx context.Context, layers []blockdev.Layer) error {
	g, err := p.look(ctx)
	if errors.Is(err, volume.ErrNotFound) {
		return nil // There is no group, and so nothing of it.
	}
	if err != nil {
		return fmt.Errorf("see whether the device is one of pool %s: %w", p.name, err)
	}
	disks := map[linux.DeviceNumber]bool{}
	for _, disk := range g.Disks {
		if info, err := linux.StatPath(disk); err == nil && info.IsBlockDevice() {
			disks[info.Device] = true
		}
	}
	return g.checkForeign(layers, disks)
}

// checkForeign does so for the disks of the group by their numbers.
func (g *group) checkForeign(layers []blockdev.Layer, disks map[linux.DeviceNumber]bool) error {
	own := map[string]string{}
	for _, e := range g.entries {
		own[mappingUUID(g.UUID, e.UUID)] = e.Name
	}
	mapped := false
	for _, layer := range layers {
		// LVM adds a word to the UUID of what is within a volume.
		uuid, _, _ := strings.Cut(strings.TrimPrefix(layer.MapperUUID, uuidPrefix), "-")
		if name, is := own[uuidPrefix+uuid]; is {
			return fmt.Errorf("%w: it is, lies on or carries device %s, the logical volume %s/%s of pool %s; a PersistentVolume cannot name it",
				volume.ErrInUse, layer.Number, g.Name, name, g.pool)
		}
		mapped = mapped || strings.HasPrefix(layer.MapperUUID, mappingUUID(g.UUID, ""))
	}
	if mapped {
		return nil // Another logical volume of the group, which lies on its disks.
	}
	for _, layer := range layers {
		if disks[layer.Number] {
			return fmt.Errorf("%w: it is, lies on or carries device %s, a disk of volume group %s of pool %s; a PersistentVolume cannot name it",
				volume.ErrInUse, layer.Number, g.Name, g.pool)
		}
	}
	return nil
}
