package disk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

const (
	// wipeChunk is how many bytes are wiped by one call: little enough to end soon
	// when the plugin does.
	wipeChunk = 64 << 20
	// wipeStep is the step of a pool.
	wipeStep = 16 << 30
	// wipeRetry is how long a space waits that could not be wiped.
	wipeRetry = time.Minute
)

// errEntryGone says that the space is no longer to be wiped: the table on the disk
// has become another after a change that failed.
var errEntryGone = errors.New("its entry has gone from the partition table")

// progress is how far the wiping of a space is.
type progress struct {
	// total is the size of the space when its wiping began, or was resumed.
	total uint64
	// left is how many bytes of it are not wiped yet.
	left uint64
	// logged is how many tenths of it were logged as done.
	logged uint64
	// err is why the last attempt failed.
	err error
}

// startWiper starts the wiper of a disk where there is something to wipe. The pool
// is locked.
func (p *Pool) startWiper(m *member) {
	if m.wiper || m.nextWiping() < 0 {
		return
	}
	m.wiper = true
	p.wipers.Add(1)
	go func() {
		defer p.wipers.Done()
		p.wipeDisk(m.context, m)
	}()
}

// nextWiping returns the index of an entry to wipe, one that has not failed
// rather than one that has, or -1.
func (m *member) nextWiping() int {
	failed := -1
	for i := range m.table.Entries {
		entry := &m.table.Entries[i]
		if entry.Type != wipingType {
			continue
		}
		if state := m.wiping[entry.ID]; state == nil || state.err == nil {
			return i
		}
		failed = i
	}
	return failed
}

// wipeDisk wipes all there is to wipe on a disk, one space after the other.
func (p *Pool) wipeDisk(ctx context.Context, m *member) {
	for ctx.Err() == nil {
		p.mu.Lock()
		index := m.nextWiping()
		if index < 0 {
			m.wiper = false
			p.mu.Unlock()
			return
		}
		entry := m.table.Entries[index]
		state := m.wiping[entry.ID]
		p.mu.Unlock()
		if state != nil && state.err != nil {
			wait(ctx, wipeRetry) // All that is left has failed.
		}
		err := p.wipeEntry(ctx, m, entry.ID)
		if err != nil && ctx.Err() == nil {
			p.logger.Error(err, "Space cannot be wiped and is not offered", "disk", m.disk.NodePath, "start", entry.Start, "size", entry.Size)
		}
		p.mu.Lock()
		if state := m.wiping[entry.ID]; state != nil {
			state.err = err
		}
		p.show()
		p.mu.Unlock()
	}
}

func wait(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// wipeUnwiped has the space wiped that only volumes without a wipe could have:
// somebody needs other space than that.
func (p *Pool) wipeUnwiped() error {
	var failed []error
	for _, m := range p.usable() {
		if m.sum(unwipedType) == 0 || time.Now().Before(m.restsUntil) {
			continue
		}
		next := m.table
		for i := range next.Entries {
			if entry := &next.Entries[i]; entry.Type == unwipedType {
				entry.Attributes = uint64(p.cleaning()) << methodShift
				*entry = released(*entry)
			}
		}
		if err := p.replace(m, next); err != nil {
			failed = append(failed, err)
			continue
		}
		crashpoint.Here("entries of unwiped space written")
		if err := m.align(p.sysfs); err != nil {
			failed = append(failed, err)
			continue
		}
		p.startWiper(m)
	}
	return errors.Join(failed...)
}

// sum returns how many bytes of the disk are entries of a type.
func (m *member) sum(kind gpt.GUID) uint64 {
	total := uint64(0)
	for i := range m.table.Entries {
		if m.table.Entries[i].Type == kind {
			total += m.table.Entries[i].Size
		}
	}
	return total
}

// indexOf returns the index of the entry with an ID, or -1.
func (m *member) indexOf(id gpt.GUID) int {
	for i := range m.table.Entries {
		if m.table.Entries[i].Used() && m.table.Entries[i].ID == id {
			return i
		}
	}
	return -1
}

// wipeEntry wipes a space from its end to its start, through its partition, so
// that nothing beside it can be reached, and offers it.
func (p *Pool) wipeEntry(ctx context.Context, m *member, id gpt.GUID) error {
	partition, method, err := p.openWiping(m, id)
	if err != nil {
		return err
	}
	err = p.wipePartition(ctx, m, id, partition, method)
	partition.Close()
	if err != nil {
		return err
	}
	return p.offer(m, id)
}

func (p *Pool) openWiping(m *member, id gpt.GUID) (*linux.Raw, blockdev.WipeMethod, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	index := m.indexOf(id)
	if index < 0 {
		return nil, 0, errEntryGone
	}
	entry := &m.table.Entries[index]
	if m.wiping[id] == nil {
		m.wiping[id] = &progress{total: entry.Size, left: entry.Size}
	}
	device, err := m.openPartition(p.sysfs, index)
	if err != nil {
		return nil, 0, err
	}
	defer device.Close()
	partition, err := device.Raw(linux.RawWrite | linux.RawExclusive)
	return partition, wipeOf(entry).method(), err
}

func (p *Pool) wipePartition(ctx context.Context, m *member, id gpt.GUID, partition *linux.Raw, method blockdev.WipeMethod) error {
	left, err := linux.BlockSize(partition)
	if err != nil {
		return err
	}
	if left == 0 {
		return fmt.Errorf("%w: the disk %s has gone", volume.ErrNotFound, m)
	}
	for step := uint64(0); left > 0; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		chunk := min(left, wipeChunk)
		if err := blockdev.Wipe(partition, method, left-chunk, chunk); err != nil {
			return err
		}
		left -= chunk
		step += chunk
		p.logProgress(m, id, left)
		if step >= p.options.step && left > 0 {
			step = 0
			if err := p.shorten(m, id, left); err != nil {
				return err
			}
		}
	}
	crashpoint.Here("space wiped")
	return nil
}

// shorten takes the end of a space that is wiped out of its entry.
func (p *Pool) shorten(m *member, id gpt.GUID, size uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	index := m.indexOf(id)
	if index < 0 {
		return errEntryGone
	}
	next := m.table
	next.Entries[index].Size = size
	device, err := m.open(p.sysfs)
	if err != nil {
		return err
	}
	defer device.Close()
	if err := device.ResizePartition(index+1, next.Entries[index].Start, size); err != nil {
		return err
	}
	crashpoint.Here("partition of a wiped space shortened")
	return p.replace(m, next)
}

// offer removes the entry of a space that is wiped. Errors: volume.ErrInUse where
// anybody has its partition open, who may have written to it.
func (p *Pool) offer(m *member, id gpt.GUID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	index := m.indexOf(id)
	if index < 0 {
		return errEntryGone
	}
	device, err := m.open(p.sysfs)
	if err != nil {
		return err
	}
	defer device.Close()
	if err := deletePartition(device, index+1); err != nil {
		return err
	}
	next := m.table
	next.Entries[index] = gpt.Entry{}
	if err := p.replace(m, next); err != nil {
		return err
	}
	delete(m.numbers, index)
	delete(m.wiping, id)
	p.show()
	p.logger.Info("Space is wiped and offered", "disk", m.disk.NodePath)
	return nil
}

// logProgress logs each tenth that is done.
func (p *Pool) logProgress(m *member, id gpt.GUID, left uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := m.wiping[id]
	state.left = left
	p.show()
	if tenths := (state.total - left) / (state.total/10 + 1); tenths > state.logged {
		state.logged = tenths
		p.logger.Info("Space is being wiped", "disk", m.disk.NodePath, "percent", tenths*10, "bytesLeft", left)
	}
}
