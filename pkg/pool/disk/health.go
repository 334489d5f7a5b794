package disk

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// lost is a disk of the pool that has gone, until it comes back or the plugin ends:
// nothing that is still there tells of it.
type lost struct {
	disk blockdev.Disk
	// names are those of the volumes on it.
	names []string
	since time.Time
}

func (l *lost) String() string {
	volumes := "no volumes"
	if len(l.names) > 0 {
		volumes = "the volumes " + strings.Join(l.names, ", ")
	}
	identity := ""
	if l.disk.Serial != "" {
		identity += ", serial " + l.disk.Serial
	}
	if l.disk.WWID != "" {
		identity += ", WWID " + l.disk.WWID
	}
	return fmt.Sprintf("the disk %s%s, which has %s, has gone, or is no longer chosen (seen since %s)", l.disk.NodePath, identity, volumes, l.since.UTC().Format(time.RFC3339))
}

// lose remembers what was on a disk that the pool lets go. The pool is locked.
func (p *Pool) lose(m *member) {
	gone := &lost{disk: m.disk, since: time.Now()}
	for i := range m.table.Entries {
		if name, ok := nameOf(p.name, &m.table.Entries[i]); ok {
			gone.names = append(gone.names, name)
		}
	}
	p.lost[m.table.Disk] = gone
}

// Health returns what is wrong with the pool, from what was known when anything last
// changed; see driver's reporter.
func (p *Pool) Health(context.Context) ([]volume.Condition, []linux.DeviceNumber, error) {
	known := p.known.Load()
	var found []volume.Condition
	add := func(reason volume.Reason, format string, args ...any) {
		found = append(found, volume.Condition{Severity: volume.Degraded, Reason: reason, Message: "pool " + p.name + ": " + fmt.Sprintf(format, args...)})
	}
	for _, gone := range known.lost {
		add(volume.DiskGone, "%s; attach it again; if it is not to come back, restart the plugin, which then forgets it", gone)
	}
	for _, refused := range known.status.Refused {
		if state := refusalState(refused.State); state == failed || state == twin || state == unreadable {
			add(volume.DiskRefused, "the disk %s is not in the pool (%s): %s", refused.Name, state, refused.Reason)
		}
	}
	free, pending := uint64(0), false
	for _, disk := range known.status.Disks {
		free += disk.Free
		for _, space := range disk.Wiping {
			if space.Err != nil {
				add(volume.WipeFailing, "the space of %d bytes at %d of %s cannot be wiped and is not offered: %v; it is tried again; replace the disk if it goes on", space.Size, space.Start, disk.Path, space.Err)
			} else {
				pending = true
			}
		}
	}
	if pending && free == 0 {
		add(volume.ReclaimPending, "nothing is free before the space of deleted volumes, or of a new disk, is wiped; wait for it (rawblock_csi_disk_pool_wiping_left_bytes)")
	}
	var devices []linux.DeviceNumber
	for _, disk := range known.disks {
		attached, err := p.sysfs.IsAttached(disk.Number, disk.DiskSeq)
		if err != nil {
			return nil, nil, err
		}
		if attached {
			devices = append(devices, disk.Number)
			continue
		}
		add(volume.DiskGone, "the disk %s has gone; attach it again", disk.NodePath)
	}
	return found, devices, nil
}

// VolumeHealth returns what is wrong with a volume; see driver's reporter.
func (p *Pool) VolumeHealth(ctx context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error) {
	found, devices, known, err := p.knownHealth(name)
	if known || err != nil {
		return found, devices, err
	}
	// Perhaps its disk has just come.
	if _, err := p.Get(ctx, name); err != nil {
		return nil, nil, err
	}
	found, devices, _, err = p.knownHealth(name)
	return found, devices, err
}

func (p *Pool) knownHealth(name string) (found []volume.Condition, devices []linux.DeviceNumber, known bool, err error) {
	gone := func(what string) []volume.Condition {
		return []volume.Condition{{
			Severity: volume.Inaccessible, Reason: volume.DeviceGone,
			Message: fmt.Sprintf("pool %s: %s; attach it again, then delete the pods that use the volume, so that they are started anew", p.name, what),
		}}
	}
	seen := p.known.Load()
	place, exists := seen.places[volumeID(p.name, name)]
	if !exists {
		for _, lost := range seen.lost {
			for _, other := range lost.names {
				if other == name {
					return gone(lost.String()), nil, true, nil
				}
			}
		}
		return nil, nil, false, nil
	}
	attached, err := p.sysfs.IsAttached(place.disk.Number, place.disk.DiskSeq)
	if err != nil {
		return nil, nil, false, err
	}
	if !attached {
		return gone(fmt.Sprintf("the disk %s has gone", place.disk.NodePath)), nil, true, nil
	}
	partitions, err := p.sysfs.Partitions(place.disk.Number)
	if err != nil {
		return nil, nil, false, err
	}
	for _, partition := range partitions {
		if partition.Index == place.index+1 {
			return nil, []linux.DeviceNumber{partition.Number}, true, nil
		}
	}
	return nil, []linux.DeviceNumber{place.disk.Number}, true, nil // It has no device now.
}

// Missing returns the names of the volumes on disks that have gone.
func (p *Pool) Missing() []string {
	var names []string
	for _, gone := range p.known.Load().lost {
		names = append(names, gone.names...)
	}
	return names
}

// regain forgets that the disk of a table had gone. The pool is locked.
func (p *Pool) regain(id gpt.GUID) { delete(p.lost, id) }
