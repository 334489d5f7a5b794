package disk

import (
	"fmt"
	"maps"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// known is what the pool knew when anything last changed. It is not changed itself:
// who must not wait for a disk that does not answer reads it without the pool's
// mutex, which may be held for as long as such a disk takes.
type known struct {
	// places are where volumes are, by the IDs of their partitions. A volume that is
	// there twice is left out.
	places map[gpt.GUID]location
	status Status
	// disks are the disks of the pool, and lost those that have gone.
	disks []blockdev.Disk
	lost  []*lost
}

// location is a partition of a disk as the table of the disk has it.
type location struct {
	disk  blockdev.Disk
	index int
	entry gpt.Entry
	// number is that which the partition had a moment ago, if known says so.
	number linux.DeviceNumber
	known  bool
}

// at returns where the partition of an entry is.
func (m *member) at(index int) location {
	number, known := m.numbers[index]
	return location{m.disk, index, m.table.Entries[index], number, known}
}

// show shows what the pool has become to those who do not wait for the mutex. The
// pool is locked.
func (p *Pool) show() {
	next := &known{places: map[gpt.GUID]location{}, status: p.status(), lost: slices.Collect(maps.Values(p.lost))}
	for _, m := range p.usable() {
		next.disks = append(next.disks, m.disk)
	}
	twice := map[gpt.GUID]bool{}
	for _, m := range p.members {
		for i := range m.table.Entries {
			entry := &m.table.Entries[i]
			if entry.Type != volumeType {
				continue
			}
			if _, exists := next.places[entry.ID]; exists {
				twice[entry.ID] = true
			}
			next.places[entry.ID] = m.at(i)
		}
	}
	for id := range twice {
		delete(next.places, id)
	}
	p.known.Store(next)
}

// getKnown returns a volume without waiting for the mutex, where its disk is still
// there.
func (p *Pool) getKnown(name string) (volume.Info, bool) {
	place, exists := p.known.Load().places[volumeID(p.name, name)]
	if !exists {
		return volume.Info{}, false
	}
	attached, err := p.sysfs.IsAttached(place.disk.Number, place.disk.DiskSeq)
	return infoOf(name, &place.entry), err == nil && attached
}

// openKnown opens the device of a volume without waiting for the mutex. It is found
// only if it is where it was when the pool last changed; otherwise somebody who
// holds the mutex has to look.
func (p *Pool) openKnown(name string) (device *blockdev.Device, found bool) {
	seen := p.known.Load()
	place, exists := seen.places[volumeID(p.name, name)]
	if !exists {
		return nil, false
	}
	device, err := place.open(p.sysfs)
	if err != nil {
		return nil, false
	}
	// A change that was made meanwhile was shown before it gave the place to another.
	if p.known.Load() != seen {
		device.Close()
		return nil, false
	}
	return device, true
}

// open opens the partition and verifies that it is that. Errors: volume.ErrNotFound
// where the kernel does not show it; volume.ErrMismatch.
func (l location) open(sysfs blockdev.Sysfs) (*blockdev.Device, error) {
	if !l.known {
		partitions, err := sysfs.Partitions(l.disk.Number)
		if err != nil {
			return nil, err
		}
		for _, partition := range partitions {
			if partition.Index == l.index+1 {
				l.number, l.known = partition.Number, true
			}
		}
	}
	if !l.known {
		return nil, fmt.Errorf("%w: the kernel does not show partition %d of %s", volume.ErrNotFound, l.index+1, l.disk.NodePath)
	}
	device, err := blockdev.OpenNumber(l.number, sysfs)
	if err != nil {
		return nil, err
	}
	if err := l.check(device); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// check verifies a device by the disk, and by the place where the kernel has it.
func (l location) check(device *blockdev.Device) error {
	if err := verify(device, l.disk); err != nil {
		return err
	}
	got, err := device.Partition()
	if err != nil {
		return err
	}
	want := blockdev.Partition{Disk: l.disk.Number, Number: device.Number(), Index: l.index + 1, Start: l.entry.Start, Size: l.entry.Size}
	if got != want || device.Size() != l.entry.Size {
		return fmt.Errorf("%w: %s is partition %d of disk %s, %d bytes at %d; partition %d of %s has %d bytes at %d",
			volume.ErrMismatch, device, got.Index, got.Disk, got.Size, got.Start, want.Index, l.disk.NodePath, want.Size, want.Start)
	}
	return nil
}

// verify returns an error that wraps volume.ErrMismatch where the device, the disk
// or a partition of it, is of another disk than the one that was found.
func verify(device *blockdev.Device, disk blockdev.Disk) error {
	if device.DiskSeq() != disk.DiskSeq {
		return fmt.Errorf("%w: another disk is in the place of %s", volume.ErrMismatch, disk.NodePath)
	}
	return nil
}
