package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Release removes a volume that nobody uses from its pool, as DeleteVolume does: for
// one whose PersistentVolume is gone, as that of a cluster that no longer exists. Its
// space is offered again once it is wiped.
//
// Errors: volume.ErrNotFound; volume.ErrInUse where it is staged, published or attached;
// volume.ErrPrecondition where nothing was provisioned; volume.ErrAborted.
func (d *Doctor) Release(ctx context.Context, volumeID string) error {
	id, ok := volume.ParseID(volumeID)
	if !ok {
		return fmt.Errorf("%w: volume %q was not made by a pool: an administrator named its device, and nothing has to be released", volume.ErrPrecondition, volumeID)
	}
	unlock, err := d.Inflight.Lock(volumeID)
	if err != nil {
		return err
	}
	defer unlock()
	node, err := d.Inspector.Status(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(node.Volumes, func(v inspect.Volume) bool { return v.ID == volumeID })
	if at < 0 {
		return fmt.Errorf("%w: volume %q is in no pool of node %s; rawblockctl volumes lists those that are", volume.ErrNotFound, volumeID, node.Name)
	}
	if err := checkUnused(node.Volumes[at]); err != nil {
		return err
	}
	for _, source := range d.Inspector.Pools {
		if pool, can := source.Volumes.(deleter); can && source.Name == id.Pool {
			if err := pool.Delete(ctx, id.Name); err != nil {
				return err
			}
			klog.FromContext(ctx).Info("Volume was released by the administrator", "volume", volumeID)
			return nil
		}
	}
	return fmt.Errorf("%w: pool %s can remove volumes only while the plugin runs; start it", volume.ErrPrecondition, id.Pool)
}

// checkUnused returns an error where anybody has the volume. Errors: volume.ErrInUse.
func checkUnused(one inspect.Volume) error {
	if one.State == inspect.Unused {
		return nil
	}
	var who []string
	for _, user := range one.Users {
		who = append(who, user.String())
	}
	for _, id := range one.Attachments {
		who = append(who, "attachment "+id)
	}
	if len(who) == 0 {
		return fmt.Errorf("%w: volume %s is %s; if no pod needs it any more, rawblockctl doctor tells how to unstage it", volume.ErrInUse, one.ID, one.State)
	}
	return fmt.Errorf("%w: volume %s is %s: %s has it; end that first", volume.ErrInUse, one.ID, one.State, strings.Join(who, ", "))
}
