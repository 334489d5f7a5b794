package lvm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Health returns what is wrong with the pool, as it was seen last; see driver's reporter.
// No program is run, which would read from disks.
func (p *Pool) Health(context.Context) ([]volume.Condition, []linux.DeviceNumber, error) {
	status := p.Status()
	var found []volume.Condition
	add := func(reason volume.Reason, format string, args ...any) {
		found = append(found, p.condition(volume.Degraded, reason, format, args...))
	}
	switch {
	case errors.Is(status.Problem, volume.ErrNotFound):
		add(volume.DiskGone, "%v", status.Problem)
	case status.Problem != nil:
		add(volume.DiskRefused, "%v", status.Problem)
	}
	for _, space := range status.Wiping {
		if space.Err != nil {
			add(volume.WipeFailing, "the deleted volume of %d bytes in %s cannot be wiped and is not offered: %v; it is tried again; replace its disk if it goes on", space.Size, space.LogicalVolume, space.Err)
		}
	}
	return append(found, p.filling(status)...), nil, nil
}

func (p *Pool) condition(severity volume.Severity, reason volume.Reason, format string, args ...any) volume.Condition {
	pool := "pool " + p.name + ": "
	// Errors of the pool begin with it already.
	return volume.Condition{Severity: severity, Reason: reason, Message: pool + strings.TrimPrefix(fmt.Sprintf(format, args...), pool)}
}

// filling tells whether the thin pool may be full before its volumes are.
func (p *Pool) filling(status Status) []volume.Condition {
	name := p.options.VolumeGroup + "/" + p.options.ThinPool
	var found []volume.Condition
	add := func(reason volume.Reason, format string, args ...any) {
		found = append(found, p.condition(volume.Degraded, reason, format, args...))
	}
	switch {
	case status.Data >= 100:
		add(volume.PoolFull, "the thin pool %s is full, so writes to its volumes fail; give it more with lvextend %s", name, name)
	case status.Data >= warnData && status.Promised > status.Size:
		add(volume.PoolFilling, "%.1f %% of the thin pool %s are used, and its volumes may need more than it has; give it more with lvextend %s before writes fail", status.Data, name, name)
	}
	if status.Metadata >= warnMetadata {
		add(volume.PoolFilling, "%.1f %% of the metadata of the thin pool %s are used; give it more with lvextend --poolmetadatasize before it stops", status.Metadata, name)
	}
	return found
}

// VolumeHealth returns what is wrong with a volume; see driver's reporter.
func (p *Pool) VolumeHealth(ctx context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error) {
	status := p.Status()
	seen, known := status.entries[name]
	if !known {
		// Perhaps it has just come.
		if _, err := p.Get(ctx, name); err != nil && !errors.As(err, new(unusableError)) {
			return nil, nil, err
		}
		status = p.Status()
		seen = status.entries[name]
	}
	gone := func(reason volume.Reason, format string, args ...any) ([]volume.Condition, []linux.DeviceNumber, error) {
		return []volume.Condition{p.condition(volume.Inaccessible, reason, format, args...)}, nil, nil
	}
	switch {
	case errors.Is(status.Problem, volume.ErrNotFound):
		return gone(volume.DeviceGone, "%v", status.Problem)
	case seen.partial:
		return gone(volume.DeviceGone, "a disk of volume %s has gone; attach it again, then delete the pods that use the volume, so that they are started anew", name)
	case seen.err != nil:
		return gone(volume.RecordDamaged, "volume %s cannot be used: %v", name, seen.err)
	}
	devices, err := seen.device.number()
	return p.filling(status), devices, err
}

// number returns the number of the device, where there is one.
func (d device) number() ([]linux.DeviceNumber, error) {
	control, err := openMapper()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	info, err := d.find(control)
	if errors.Is(err, errInactive) {
		return nil, nil
	}
	return []linux.DeviceNumber{info.Number}, err
}

// Missing returns the names of the volumes that cannot be used: on disks that have gone,
// or with tags that cannot be understood.
func (p *Pool) Missing() []string {
	status := p.Status()
	if errors.Is(status.Problem, volume.ErrNotFound) {
		return slices.Sorted(maps.Keys(status.entries))
	}
	var names []string
	for name, seen := range status.entries {
		if seen.err != nil {
			names = append(names, name)
		}
	}
	return names
}
