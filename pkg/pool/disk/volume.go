package disk

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Create makes a volume, or returns the one of this name that is there already. Its
// size is the least of the range that is a multiple of 1 MiB; with the layout
// "whole", that of the smallest free disk in the range.
//
// Errors: volume.ErrInvalid for a parameter, a source (there are no copies), or an
// encryption without a wipe; volume.ErrIncompatible where the volume of this name has
// a size out of the range, another wipe or encryption; volume.ErrOutOfRange where no disk of the pool is large enough,
// or none has a size in the range; volume.ErrExhausted.
func (p *Pool) Create(_ context.Context, spec volume.Spec) (volume.Info, error) {
	method, err := parseParameters(spec.Parameters, p.wipe)
	if err != nil {
		return volume.Info{}, err
	}
	if spec.Source != (volume.Source{}) {
		return volume.Info{}, fmt.Errorf("%w: a pool of disks has no snapshots and clones; use a pool of files", volume.ErrInvalid)
	}
	if !spec.Encryption.Known() {
		return volume.Info{}, fmt.Errorf("%w: encryption %q is unknown", volume.ErrInvalid, spec.Encryption)
	}
	if spec.Encryption != volume.Plain && method == wipeNone {
		// Where the header is to be, there could be that of the volume before.
		return volume.Info{}, fmt.Errorf("%w: %s %s leaves what was there before, and a volume with encryption has to begin blank; choose another %s",
			volume.ErrInvalid, wipeKey, method, wipeKey)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m, index, err := p.look(spec.Name)
	if err == nil {
		return p.existing(m, index, spec, method)
	}
	if !errors.Is(err, volume.ErrNotFound) {
		return volume.Info{}, err
	}
	for failed := error(nil); ; {
		m, place, err := p.choose(spec.Size, method)
		if err != nil {
			return volume.Info{}, errors.Join(err, failed)
		}
		info, err := p.make(m, withEncryption(newVolume(p.name, spec.Name, method, place), spec.Encryption), spec.Name)
		if !errors.Is(err, gpt.ErrUntouched) {
			return info, err
		}
		failed = errors.Join(failed, err) // Another disk may do: this one rests now.
	}
}

// choose chooses the disk and the place of a new volume, and has space wiped where
// there is none.
func (p *Pool) choose(size volume.Range, method wipe) (*member, space, error) {
	m, place, err := p.place(size, method)
	if errors.Is(err, volume.ErrExhausted) || errors.Is(err, volume.ErrOutOfRange) {
		// Perhaps somebody has wiped a disk meanwhile.
		if err := p.discover(true); err != nil {
			return nil, space{}, err
		}
		m, place, err = p.place(size, method)
	}
	if errors.Is(err, volume.ErrExhausted) && method != wipeNone {
		err = errors.Join(err, p.wipeUnwiped())
	}
	return m, place, err
}

// existing returns the volume that is there already, if it is as the spec says.
func (p *Pool) existing(m *member, index int, spec volume.Spec, method wipe) (volume.Info, error) {
	entry := &m.table.Entries[index]
	if !spec.Size.Contains(entry.Size) {
		return volume.Info{}, fmt.Errorf("%w: volume %s has %d bytes", volume.ErrIncompatible, spec.Name, entry.Size)
	}
	if wipeOf(entry) != method {
		return volume.Info{}, fmt.Errorf("%w: volume %s has %s %s, not %s", volume.ErrIncompatible, spec.Name, wipeKey, wipeOf(entry), method)
	}
	if has := encryptionOf(entry); has != spec.Encryption {
		return volume.Info{}, fmt.Errorf("%w: volume %s has encryption %q, not %q", volume.ErrIncompatible, spec.Name, has, spec.Encryption)
	}
	return infoOf(spec.Name, entry), m.align(p.sysfs)
}

// make makes the partition of a volume.
func (p *Pool) make(m *member, entry gpt.Entry, name string) (volume.Info, error) {
	next := m.table
	take(&next, entry)
	if err := p.replace(m, next); err != nil {
		return volume.Info{}, err
	}
	crashpoint.Here("entry of the volume written")
	if err := m.align(p.sysfs); err != nil {
		return volume.Info{}, err
	}
	return infoOf(name, &entry), nil
}

// Get returns a volume. Errors: volume.ErrNotFound.
func (p *Pool) Get(_ context.Context, name string) (volume.Info, error) {
	if info, found := p.getKnown(name); found {
		return info, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m, index, err := p.look(name)
	if err != nil {
		return volume.Info{}, err
	}
	return infoOf(name, &m.table.Entries[index]), nil
}

// List returns all volumes on the disks that are attached, in no order.
func (p *Pool) List(context.Context) ([]volume.Info, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.discover(false); err != nil {
		return nil, err
	}
	var found []volume.Info
	for _, m := range p.members {
		for i := range m.table.Entries {
			entry := &m.table.Entries[i]
			if name, ok := nameOf(p.name, entry); ok {
				found = append(found, infoOf(name, entry))
			}
		}
	}
	return found, nil
}

// Delete removes a volume, whose space is wiped in the background and offered
// again after that. One that does not exist is no error, and so is one whose disk
// is not attached. Errors: volume.ErrInUse while anybody has its device open;
// volume.ErrPrecondition where it may be on a disk that cannot be read.
func (p *Pool) Delete(_ context.Context, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, index, err := p.look(name)
	if errors.Is(err, volume.ErrNotFound) {
		return p.checkNowhere(name)
	}
	if err != nil {
		return err
	}
	if err := m.takeAway(p.sysfs, index); err != nil {
		return fmt.Errorf("delete volume %s: %w", name, err)
	}
	next := m.table
	next.Entries[index] = released(next.Entries[index])
	if err := p.replace(m, next); err != nil {
		return errors.Join(err, m.align(p.sysfs))
	}
	crashpoint.Here("entry of the volume released")
	err = m.align(p.sysfs)
	p.startWiper(m)
	return err
}

// checkNowhere returns an error where nobody can say that a volume, which is on none
// of the disks of the pool, does not exist.
func (p *Pool) checkNowhere(name string) error {
	for _, refused := range p.refused {
		if refused.state == failed || refused.ours {
			return fmt.Errorf("%w: volume %s is on no disk of pool %s, but may be on %s: %s; mend that disk, or take it out",
				volume.ErrPrecondition, name, p.name, refused.disk.NodePath, refused.reason)
		}
	}
	return nil
}

// takeAway makes the kernel forget the partition of a volume. That proves that
// nobody has it open, not even without a claim, as loop devices have; where its node is
// mounted, nobody need have it open.
func (m *member) takeAway(sysfs blockdev.Sysfs, index int) error {
	partition, err := m.openPartition(sysfs, index)
	if err != nil {
		return err
	}
	err = errors.Join(partition.CheckFree(), partition.CheckUnpublished())
	partition.Close()
	if err != nil {
		return err
	}
	device, err := m.open(sysfs)
	if err != nil {
		return err
	}
	defer device.Close()
	delete(m.numbers, index)
	return deletePartition(device, index+1)
}

// Activate returns the device of a volume, open and verified to be that of the
// volume. Errors: volume.ErrNotFound where there is no such volume, or its disk has
// gone; volume.ErrMismatch.
func (p *Pool) Activate(_ context.Context, name string) (*blockdev.Device, error) {
	if device, found := p.openKnown(name); found {
		return device, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.show() // The number of its partition is known now.
	device, err := p.activate(name)
	if errors.Is(err, volume.ErrNotFound) || errors.Is(err, volume.ErrMismatch) {
		// The disk may have come back under another name.
		if err := p.discover(false); err != nil {
			return nil, err
		}
		device, err = p.activate(name)
	}
	return device, err
}

func (p *Pool) activate(name string) (*blockdev.Device, error) {
	m, index, err := p.find(name)
	if err != nil {
		return nil, err
	}
	return m.openPartition(p.sysfs, index)
}

// Deactivate does nothing: the device of a volume is there as long as the volume.
func (p *Pool) Deactivate(context.Context, string) error { return nil }

// Expand grows a volume into the free space behind it, while it is in use, and
// returns its size. New space reads zero. A volume that is large enough is left as
// it is.
//
// Errors: volume.ErrNotFound; volume.ErrOutOfRange where the size is less than the
// volume has, or more than the disk; volume.ErrExhausted where there is something
// else behind.
func (p *Pool) Expand(_ context.Context, name string, size volume.Range) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, index, err := p.look(name)
	if err != nil {
		return 0, err
	}
	entry := m.table.Entries[index]
	if size.Contains(entry.Size) {
		return entry.Size, m.align(p.sysfs)
	}
	want, err := size.Choose(entry.Size, entry.Size, unit)
	if err != nil {
		return 0, fmt.Errorf("volume %s has %d bytes: %w", name, entry.Size, err)
	}
	if err := m.checkBehind(&entry, want); err != nil {
		return 0, fmt.Errorf("grow volume %s from %d to %d bytes: %w", name, entry.Size, want, err)
	}
	next := m.table
	next.Entries[index].Size = want
	if err := p.replace(m, next); err != nil {
		return 0, err
	}
	crashpoint.Here("entry of the volume grown")
	return want, m.align(p.sysfs)
}

// checkBehind returns an error unless a volume can grow to a size where it is.
func (m *member) checkBehind(entry *gpt.Entry, size uint64) error {
	if most := room(&m.table).end - entry.Start; size > most {
		return fmt.Errorf("%w: the disk %s has no more than %d from where the volume begins", volume.ErrOutOfRange, m, most)
	}
	for i := range m.table.Entries {
		other := &m.table.Entries[i]
		if other.Used() && other.Start >= entry.End() && other.Start < entry.Start+size {
			return fmt.Errorf("%w: behind the volume only %d bytes are free before %q", volume.ErrExhausted, other.Start-entry.End(), other.Name)
		}
	}
	return nil
}

// secureErase reports whether a disk can erase securely, which is tried on the
// claim: nobody's data is there.
func (m *member) secureErase() bool {
	if m.secure == nil {
		err := linux.SecureDiscard(m.claim, 0, unit)
		if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
			return false // A disk that fails says nothing.
		}
		can := err == nil
		m.secure = &can
	}
	return *m.secure
}
