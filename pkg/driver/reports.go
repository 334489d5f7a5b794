package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/health"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// reports finds out how the volumes and pools of this node are, from what was staged,
// from the pools, and from what the kernel tells of the devices. A call waits for
// none of them for longer than health.Patience.
type reports struct {
	volumes     volumes
	attachments attachments
	publisher   *publish.Publisher
	monitor     *health.Monitor
	pools       health.Asker[report]
	names       health.Asker[[]string]
}

// report is what a pool says.
type report struct {
	conditions []volume.Condition
	devices    []linux.DeviceNumber
}

// volume returns what is wrong with a volume: one that is staged here, is in a pool of
// this node, or could not be staged of late. Errors: volume.ErrNotFound where it is
// none of these.
func (r *reports) volume(ctx context.Context, volumeID string) ([]volume.Condition, error) {
	staged, isStaged, err := r.publisher.Staged(volumeID)
	if err != nil {
		return nil, err
	}
	attempt, attempted := r.monitor.Unopened()[volumeID]
	told, err := r.ofPool(ctx, volumeID)
	if errors.Is(err, volume.ErrNotFound) && (isStaged || attempted) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	var tried []volume.Condition
	if attempted {
		tried = append(tried, attempt)
	}
	var devices []health.Device
	writable := !isStaged || !staged.Mode.ReadOnly()
	if isStaged {
		devices = append(devices, health.Device{Number: staged.Number, DiskSeq: staged.DiskSeq, IsKnown: true, Writable: writable})
	}
	for _, number := range told.devices { // One that is looked at already is not again.
		devices = append(devices, health.Device{Number: number, Writable: writable})
	}
	found, err := r.monitor.Devices(ctx, devices...)
	if err != nil {
		return nil, err
	}
	lost, err := r.attachments.Conditions(ctx, volumeID)
	if err != nil {
		return nil, err
	}
	return volume.MergeConditions(slices.Concat(told.conditions, tried, found, lost)), nil
}

// ofPool asks the pool of a volume. Errors: volume.ErrNotFound, also where no pool of
// this node has volumes with such an ID.
func (r *reports) ofPool(ctx context.Context, volumeID string) (report, error) {
	id, ok := volume.ParseID(volumeID)
	if !ok {
		return report{}, fmt.Errorf("%w: volume %s is not staged on this node", volume.ErrNotFound, volumeID)
	}
	pool, err := r.volumes.pool(id)
	if err != nil {
		return report{}, err
	}
	return r.ask(ctx, "volume "+volumeID, func(ctx context.Context) (told report, err error) {
		if reporter, ok := pool.(reporter); ok {
			told.conditions, told.devices, err = reporter.VolumeHealth(ctx, id.Name)
			return told, err
		}
		_, err = pool.Get(ctx, id.Name)
		return told, err
	})
}

// ask asks a pool. That it does not answer, or cannot tell, is a condition.
func (r *reports) ask(ctx context.Context, what string, find func(context.Context) (report, error)) (report, error) {
	told, err := r.pools.Ask(ctx, what, find)
	silent := new(health.SilentError)
	switch {
	case errors.As(err, &silent):
		return report{conditions: []volume.Condition{silent.Condition()}}, nil
	case err == nil || errors.Is(err, volume.ErrNotFound) || ctx.Err() != nil:
		return told, err
	}
	return report{conditions: []volume.Condition{health.Unknown(what, err)}}, nil
}

// storage returns what is wrong with the pools of this node, and the devices that they
// lie on.
func (r *reports) storage(ctx context.Context) ([]volume.Condition, error) {
	var all []volume.Condition
	for _, name := range slices.Sorted(maps.Keys(r.volumes.pools)) {
		reporter, ok := r.volumes.pools[name].(reporter)
		if !ok {
			continue
		}
		told, err := r.ask(ctx, "pool "+name, func(ctx context.Context) (told report, err error) {
			told.conditions, told.devices, err = reporter.Health(ctx)
			return told, err
		})
		if err != nil {
			return nil, err
		}
		found, err := r.monitor.Pool(ctx, name, told.devices)
		if err != nil {
			return nil, err
		}
		all = slices.Concat(all, told.conditions, found)
	}
	return volume.MergeConditions(all), nil
}

// lookers is how many volumes are looked at side by side: so many that some whose
// disks hang do not keep the others waiting.
const lookers = 64

// all returns what is wrong with the volumes with the IDs, those left out with which
// nothing is.
func (r *reports) all(ctx context.Context, volumeIDs []string) (map[string][]volume.Condition, error) {
	var mu sync.Mutex
	found := map[string][]volume.Condition{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookers)
	for _, volumeID := range volumeIDs {
		group.Go(func() error {
			conditions, err := r.volume(ctx, volumeID)
			if errors.Is(err, volume.ErrNotFound) {
				return nil // It has gone meanwhile.
			}
			mu.Lock()
			defer mu.Unlock()
			if len(conditions) > 0 {
				found[volumeID] = conditions
			}
			return err
		})
	}
	return found, group.Wait()
}

// provisioned returns the IDs of the volumes of the pools, also of those on disks that
// have gone. Of a pool that does not answer, those that are staged are known; so they are of
// one that fails, with the error.
func (r *reports) provisioned(ctx context.Context) ([]string, error) {
	known := map[string]bool{}
	staged, err := r.publisher.AllStaged()
	if err != nil {
		return nil, err
	}
	for _, device := range staged {
		if id, ok := volume.ParseID(device.VolumeID); ok && r.volumes.pools[id.Pool] != nil {
			known[device.VolumeID] = true
		}
	}
	var failed error
	for pool := range r.volumes.pools {
		names, err := r.namesOf(ctx, pool)
		if errors.As(err, new(*health.SilentError)) {
			klog.FromContext(ctx).Error(err, "Cannot list a pool for its health; of its volumes, those that are staged are looked at", "pool", pool)
			continue
		}
		failed = errors.Join(failed, err)
		for _, name := range names {
			known[r.volumes.id(pool, name)] = true
		}
	}
	return slices.Sorted(maps.Keys(known)), failed
}

func (r *reports) namesOf(ctx context.Context, name string) ([]string, error) {
	pool := r.volumes.pools[name]
	return r.names.Ask(ctx, "pool "+name, func(ctx context.Context) ([]string, error) {
		volumes, err := pool.List(ctx)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, info := range volumes {
			names = append(names, info.Name)
		}
		if reporter, ok := pool.(reporter); ok {
			names = append(names, reporter.Missing()...)
		}
		return names, nil
	})
}
