package disk

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/signature"
)

// Why a candidate is not in the pool, beside what its selector says.
const (
	// busy: something uses the disk, or it failed. It is looked at again at the
	// next occasion.
	busy refusalState = "busy"
	// occupied: there is data on the disk, or a table of others.
	occupied refusalState = "occupied"
	// foreign: the disk belongs to another pool.
	foreign refusalState = "foreign"
	// twin: another disk is a copy of this one, or this one of it.
	twin refusalState = "twin"
)

// discover takes disks in that have come, and lets go of those that have gone.
// A disk that was refused for its data is looked at again only if asked for: that
// reads more of it than a call should often wait for.
//
// It costs a few reads of sysfs for each disk of the machine where nothing has
// changed.
func (p *Pool) discover(again bool) error {
	found, unchosen, err := candidates(p.sysfs, p.options.Match, p.options.Exclude)
	if err != nil {
		return err
	}
	before := p.refused
	p.refused = map[diskKey]refusal{}
	for _, refused := range unchosen {
		p.refused[keyOf(&refused.disk)] = refused
	}
	present := map[diskKey]bool{}
	var come []*member
	for _, disk := range found {
		key := keyOf(&disk)
		present[key] = true
		if p.members[key] != nil {
			continue
		}
		if old, known := before[key]; known && !again && (old.state == occupied || old.state == foreign) {
			p.refused[key] = old
			continue
		}
		m, err := p.examine(disk)
		if err != nil {
			p.refuse(disk, err)
			continue
		}
		come = append(come, m)
	}
	p.dropAbsent(present)
	p.admit(come)
	p.logChanges(before)
	return nil
}

// refusedError is why a disk cannot be in the pool.
type refusedError struct {
	state refusalState
	text  string
}

func (e *refusedError) Error() string { return e.text }

func refusef(state refusalState, format string, args ...any) error {
	return &refusedError{state, fmt.Sprintf(format, args...)}
}

func (p *Pool) refuse(disk blockdev.Disk, err error) {
	reason := refusal{disk, busy, err.Error()}
	var refused *refusedError
	if errors.As(err, &refused) {
		reason.state = refused.state
	}
	p.refused[keyOf(&disk)] = reason
}

// dropAbsent lets go of the disks that are no longer there, or no longer chosen.
func (p *Pool) dropAbsent(present map[diskKey]bool) {
	for key, m := range p.members {
		if !present[key] {
			p.logger.Info("Disk has gone", "disk", m.disk.NodePath, "id", m.table.Disk)
			m.release()
			delete(p.members, key)
		}
	}
}

// examine looks at a disk, and adopts it where it is free.
func (p *Pool) examine(disk blockdev.Disk) (*member, error) {
	m := &member{disk: disk, numbers: map[int]linux.DeviceNumber{}, wiping: map[gpt.GUID]*progress{}}
	device, err := m.open(p.sysfs)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	raw, err := device.Raw(0)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	found, err := gpt.Read(raw, disk.Size, disk.LogicalBlockSize)
	switch {
	case errors.Is(err, gpt.ErrNone):
		m.table, err = p.adopt(device, disk)
	case err == nil:
		m.table, err = found.Table, p.checkClaim(&found, raw)
	case errors.Is(err, gpt.ErrDamaged):
		err = refusef(occupied, "%v", err)
	}
	return m, err
}

// checkClaim refuses a disk with a table that is not ours, or with something of
// others in the place of our table.
func (p *Pool) checkClaim(found *gpt.Found, disk *linux.Raw) error {
	pool, claimed := claimant(&found.Table)
	if !claimed {
		return refusef(occupied, "it has a partition table of others; if nobody needs what is on it, wipe it with wipefs -a")
	}
	if pool != p.name {
		return refusef(foreign, "it belongs to the pool %s", pool)
	}
	if found.Primary == nil {
		return nil
	}
	// The table is damaged. Nobody but another owner writes before the claim.
	findings, err := signature.Find(disk, int64(found.Table.Size)) //nolint:gosec // Disks have at most 2^63 bytes.
	if err != nil {
		return err
	}
	for _, finding := range findings {
		if finding.Offset < unit && isForeign(finding) {
			return refusef(occupied, "it belongs to this pool, but in place of the partition table it has %s; if nobody needs that, restore the table with sgdisk, or wipe the disk", finding)
		}
	}
	return nil
}

// isForeign tells a signature of another owner from what is left of our table.
func isForeign(finding signature.Finding) bool {
	return !strings.Contains(finding.Kind, "partition table") && finding.Kind != signature.Unknown
}

// admit makes disks usable: none that is there twice.
func (p *Pool) admit(come []*member) {
	byID := map[gpt.GUID][]*member{}
	for _, m := range p.members {
		byID[m.table.Disk] = append(byID[m.table.Disk], m)
	}
	for _, m := range come {
		byID[m.table.Disk] = append(byID[m.table.Disk], m)
	}
	for _, same := range byID {
		if len(same) > 1 {
			p.refuseTwins(same)
			continue
		}
		m := same[0]
		if p.members[keyOf(&m.disk)] != nil {
			continue
		}
		if err := p.start(m); err != nil {
			m.release()
			p.refuse(m.disk, err)
			continue
		}
		p.members[keyOf(&m.disk)] = m
	}
}

// refuseTwins refuses disks that have the same ID: one is a copy of the other, and
// nobody can tell which.
func (p *Pool) refuseTwins(same []*member) {
	var paths []string
	for _, m := range same {
		paths = append(paths, m.disk.NodePath)
	}
	for _, m := range same {
		m.release()
		delete(p.members, keyOf(&m.disk))
		p.refuse(m.disk, refusef(twin, "the disks %s have the same ID %s: one is a copy of the other; remove it, or wipe it", strings.Join(paths, " and "), m.table.Disk))
	}
}

// start repairs the table of a disk, makes the kernel's partitions those of the
// table, claims the disk, and has its wiping go on.
func (p *Pool) start(m *member) error {
	if err := m.repair(p); err != nil {
		return err
	}
	if err := m.align(p.sysfs); err != nil {
		return err
	}
	claim, err := m.openPartition(p.sysfs, claimIndex)
	if err != nil {
		return err
	}
	defer claim.Close()
	if m.claim, err = claim.Raw(linux.RawExclusive | linux.RawWrite); err != nil {
		return err
	}
	m.context, m.stop = context.WithCancel(p.background)
	p.logger.Info("Disk is in the pool", "disk", m.disk.NodePath, "id", m.table.Disk, "size", m.disk.Size)
	p.startWiper(m)
	return nil
}

func (m *member) repair(p *Pool) error {
	device, err := m.open(p.sysfs)
	if err != nil {
		return err
	}
	defer device.Close()
	raw, err := device.Raw(linux.RawWrite)
	if err != nil {
		return err
	}
	defer raw.Close()
	found, err := gpt.Read(raw, m.disk.Size, m.disk.LogicalBlockSize)
	if err != nil {
		return err
	}
	if found.Table != m.table {
		return fmt.Errorf("disk %s: %w", m, gpt.ErrChanged)
	}
	if found.Primary != nil || found.Backup != nil {
		p.logger.Info("A copy of the partition table is repaired", "disk", m.disk.NodePath, "primary", found.Primary, "backup", found.Backup)
	}
	return found.Repair(raw)
}

// logChanges logs why disks are not in the pool, once for each reason.
func (p *Pool) logChanges(before map[diskKey]refusal) {
	for key, now := range p.refused {
		if old, known := before[key]; !known || old.reason != now.reason {
			p.logger.Info("Disk is not in the pool", "disk", now.disk.Name, "state", now.state, "reason", now.reason)
		}
	}
}
