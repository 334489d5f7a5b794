package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Survey is a pool as its disks have it, for who must not change them: nothing is
// adopted, wiped, repaired or claimed. It is what was there when it was made. Its
// methods may be called concurrently.
type Survey struct{ pool *Pool }

// Look looks at the disks of a pool, which need not be open. A disk that cannot be
// used, or that the pool would adopt, is among Status().Refused. Errors:
// volume.ErrInvalid for an option.
func Look(name string, options Options, sysfs blockdev.Sysfs) (*Survey, error) {
	found, unchosen, err := candidates(sysfs, options.Match, options.Exclude)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	p := &Pool{
		name: name, options: options, sysfs: sysfs, metrics: newMetrics(name),
		members: map[diskKey]*member{}, refused: map[diskKey]refusal{},
	}
	for _, refused := range unchosen {
		p.refused[keyOf(&refused.disk)] = refused
	}
	byID := map[gpt.GUID][]*member{}
	for _, disk := range found {
		m := &member{disk: disk, numbers: map[int]linux.DeviceNumber{}, wiping: map[gpt.GUID]*progress{}}
		if err := p.lookAt(m); err != nil {
			p.refuse(disk, err, 0)
			continue
		}
		byID[m.table.Disk] = append(byID[m.table.Disk], m)
	}
	for _, same := range byID {
		if len(same) > 1 {
			p.refuseTwins(same)
			continue
		}
		p.members[keyOf(&same[0].disk)] = same[0]
	}
	p.show()
	return &Survey{p}, nil
}

// vacant: the disk has no table, and the pool looks at whether it is free when it
// runs. It is a state of a Survey only.
const vacant refusalState = "vacant"

// lookAt reads the table of a disk, and returns why it is not the pool's.
func (p *Pool) lookAt(m *member) error {
	found, raw, err := readTable(m.disk, p.sysfs)
	switch {
	case errors.Is(err, gpt.ErrNone):
		return refusef(vacant, "it has no partition table; the plugin adopts it if it is free")
	case errors.Is(err, gpt.ErrDamaged):
		return refusef(occupied, "%v", err)
	case errors.Is(err, gpt.ErrUnread):
		return refusef(failed, "%v", err)
	case err != nil:
		return err
	}
	defer raw.Close()
	m.table = found.Table
	return p.checkClaim(&found, raw)
}

// readTable reads the table of a disk. The caller closes what it was read from, where
// there is no error.
func readTable(disk blockdev.Disk, sysfs blockdev.Sysfs) (gpt.Found, *linux.Raw, error) {
	device, err := (&member{disk: disk}).open(sysfs)
	if err != nil {
		return gpt.Found{}, nil, err
	}
	defer device.Close()
	raw, err := device.Raw(0)
	if err != nil {
		return gpt.Found{}, nil, err
	}
	found, err := gpt.Read(raw, disk.Size, disk.LogicalBlockSize)
	if err != nil {
		raw.Close()
	}
	return found, raw, err
}

// List returns all volumes on the disks, in the order of their names.
func (s *Survey) List(context.Context) ([]volume.Info, error) {
	var found []volume.Info
	for _, m := range s.pool.members {
		for i := range m.table.Entries {
			if name, ok := nameOf(s.pool.name, &m.table.Entries[i]); ok {
				found = append(found, volume.Info{Name: name, Size: m.table.Entries[i].Size})
			}
		}
	}
	slices.SortFunc(found, func(a, b volume.Info) int { return cmp.Compare(a.Name, b.Name) })
	return found, nil
}

// Status returns what is known of the disks.
func (s *Survey) Status() Status { return s.pool.Status() }

// Medium returns where a volume is. Errors: volume.ErrNotFound.
func (s *Survey) Medium(name string) (volume.Medium, error) { return s.pool.Medium(name) }

// VolumeHealth returns what is wrong with a volume, and its device. Errors:
// volume.ErrNotFound.
func (s *Survey) VolumeHealth(ctx context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error) {
	return s.pool.VolumeHealth(ctx, name)
}

// Capacity returns what could be made if the plugin ran.
func (s *Survey) Capacity(context.Context, map[string]string) (volume.Capacity, error) {
	return s.pool.capacity(wipeDiscard), nil
}

// Medium returns where a volume is, by what is known without looking. Errors:
// volume.ErrNotFound.
func (p *Pool) Medium(name string) (volume.Medium, error) {
	place, exists := p.known.Load().places[volumeID(p.name, name)]
	if !exists {
		return volume.Medium{}, fmt.Errorf("%w: pool %s has no volume %s on the disks that are attached", volume.ErrNotFound, p.name, name)
	}
	return volume.Medium{
		Kind: "partition", Path: place.disk.NodePath,
		Detail: fmt.Sprintf("partition %d, %d bytes at %d, wipe %s", place.index+1, place.entry.Size, place.entry.Start, wipeOf(&place.entry)),
	}, nil
}

// Claim is what the partition table of a disk says of this project.
type Claim struct {
	// Pool is the pool that has claimed the disk.
	Pool string
	// Disk is the ID of the table.
	Disk string
	// Volumes are the names of the volumes on it.
	Volumes []string
	// Wiping is how many spaces are still to be wiped.
	Wiping int
	// Primary and Backup say what is wrong with the copies of the table; nil: nothing.
	Primary, Backup error
}

// ReadClaim reads the table of any disk, and writes nothing. Errors:
// volume.ErrNotFound where no pool has claimed it, or it has gone.
func ReadClaim(disk blockdev.Disk, sysfs blockdev.Sysfs) (Claim, error) {
	found, raw, err := readTable(disk, sysfs)
	if errors.Is(err, gpt.ErrNone) {
		return Claim{}, fmt.Errorf("%w: %s has no partition table", volume.ErrNotFound, disk.Name)
	}
	if err != nil {
		return Claim{}, fmt.Errorf("disk %s: %w", disk.Name, err)
	}
	raw.Close()
	pool, claimed := found.Table.Claimant()
	if !claimed {
		return Claim{}, fmt.Errorf("%w: no pool has claimed %s", volume.ErrNotFound, disk.Name)
	}
	claim := Claim{Pool: pool, Disk: found.Table.Disk.String(), Primary: found.Primary, Backup: found.Backup}
	for i := range found.Table.Entries {
		entry := &found.Table.Entries[i]
		switch entry.Type {
		case volumeType:
			claim.Volumes = append(claim.Volumes, volume.NameOfLabel(entry.Name))
		case wipingType:
			claim.Wiping++
		}
	}
	return claim, nil
}

// RepairTable writes the copy of the partition table again that is damaged, of a disk
// of the pool, which the kernel calls by the name. Errors: volume.ErrNotFound where the
// pool has no such disk; gpt.ErrChanged.
func (p *Pool) RepairTable(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		if m.disk.Name == name {
			return m.repair(p)
		}
	}
	return fmt.Errorf("%w: pool %s has no disk %s", volume.ErrNotFound, p.name, name)
}

// RepairTable does what that of Pool does. The plugin must not run.
func (s *Survey) RepairTable(name string) error { return s.pool.RepairTable(name) }
