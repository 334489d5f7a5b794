package disk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/signature"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Why a candidate is not in the pool, beside what its selector says.
const (
	// busy: something uses the disk. It is looked at again at the next occasion.
	busy refusalState = "busy"
	// failed: what is on the disk cannot be read, or it belongs to the pool and cannot
	// be written. It may have volumes. It is looked at again as busy ones are, but the
	// longer it takes, the more seldom: others wait meanwhile.
	failed refusalState = "failed"
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
		if old, known := before[key]; known && !again && old.rests() {
			p.refused[key] = old
			continue
		}
		began := time.Now()
		m, err := p.examine(disk)
		if err != nil {
			p.refuse(disk, err, time.Since(began))
			continue
		}
		come = append(come, m)
	}
	p.dropAbsent(present)
	p.admit(come)
	p.show()
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

// refuse notes why a disk is not in the pool, and how long it took to see that.
func (p *Pool) refuse(disk blockdev.Disk, err error, took time.Duration) {
	reason := refusal{disk: disk, state: busy, reason: err.Error(), restsUntil: time.Now().Add(restsFor * took)}
	var refused *refusedError
	if errors.As(err, &refused) {
		reason.state = refused.state
	}
	p.refused[keyOf(&disk)] = reason
}

// refuseOurs notes that a disk that is refused has volumes of the pool.
func (p *Pool) refuseOurs(m *member) {
	key := keyOf(&m.disk)
	reason := p.refused[key]
	reason.ours = true
	p.refused[key] = reason
}

// restsFor is how many times as long as a look at a failed disk took it is left in
// peace: the kernel may try for minutes before it gives a read up.
const restsFor = 10

// rests reports whether the disk is not to be looked at now.
func (r refusal) rests() bool {
	return r.state == occupied || r.state == foreign || r.state == failed && time.Now().Before(r.restsUntil)
}

// dropAbsent lets go of the disks that are no longer there, or no longer chosen.
func (p *Pool) dropAbsent(present map[diskKey]bool) {
	for key, m := range p.members {
		if !present[key] {
			p.logger.Info("Disk has gone", "disk", m.disk.NodePath, "id", m.table.Disk)
			p.lose(m)
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
		// A pod that has the whole disk can write any claim.
		if err := device.CheckUnexposed(); err != nil {
			return nil, err
		}
		m.table, err = found.Table, p.checkClaim(&found, raw)
	case errors.Is(err, gpt.ErrDamaged):
		err = refusef(occupied, "%v", err)
	case errors.Is(err, gpt.ErrUnread):
		err = refusef(failed, "%v", err)
	}
	return m, err
}

// checkClaim refuses a disk with a table that is not ours, or with something of
// others in the place of our table.
func (p *Pool) checkClaim(found *gpt.Found, disk *linux.Raw) error {
	pool, claimed := found.Table.Claimant()
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
		return refusef(failed, "it belongs to this pool, and cannot be read: %v", err)
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
		began := time.Now()
		if err := p.start(m); err != nil {
			m.release()
			if !errors.Is(err, volume.ErrInUse) {
				err = refusef(failed, "it belongs to this pool, and cannot be used: %v", err)
			}
			p.refuse(m.disk, err, time.Since(began))
			p.refuseOurs(m)
			continue
		}
		p.members[keyOf(&m.disk)] = m
		p.regain(m.table.Disk)
	}
}

// refuseTwins refuses disks that have the same ID: one is a copy of the other, and
// nobody can tell which; or they are paths to one disk.
func (p *Pool) refuseTwins(same []*member) {
	var paths []string
	for _, m := range same {
		paths = append(paths, m.disk.NodePath)
	}
	for _, m := range same {
		m.release()
		delete(p.members, keyOf(&m.disk))
		p.refuse(m.disk, refusef(twin, "the disks %s have the same ID %s: %s", strings.Join(paths, " and "), m.table.Disk, whyTwins(same)), 0)
		p.refuseOurs(m)
	}
}

// whyTwins says what disks with the same ID may be. To wipe one of two paths is to
// wipe the disk.
func whyTwins(same []*member) string {
	wwid := same[0].disk.WWID
	for _, m := range same {
		if wwid == "" || m.disk.WWID != wwid {
			return "one is a copy of the other; remove it, or wipe it"
		}
	}
	return fmt.Sprintf("they have the same WWID %s, too, so they are paths to one disk; choose one of them by its path, and wipe neither", wwid)
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
	err = found.Repair(raw)
	if err != nil && found.Primary == nil {
		// The disk has a whole table, and volumes that somebody may need.
		p.logger.Error(err, "The backup of the partition table cannot be repaired: the disk is failing, and nothing on it can be made, grown or deleted", "disk", m.disk.NodePath)
		return nil
	}
	return err
}

// logChanges logs why disks are not in the pool, once for each reason.
func (p *Pool) logChanges(before map[diskKey]refusal) {
	for key, now := range p.refused {
		if old, known := before[key]; !known || old.reason != now.reason {
			p.logger.Info("Disk is not in the pool", "disk", now.disk.Name, "state", now.state, "reason", now.reason)
		}
	}
}
