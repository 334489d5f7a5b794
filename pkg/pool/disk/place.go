package disk

import (
	"context"
	"fmt"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// preferredSize is the size in bytes of a volume for which none is required, where
// there is so much.
const preferredSize = 1 << 30

// spaces returns the spaces of a disk that volumes with a wipe can be made of now:
// with the layout "whole" all of it or nothing.
func (p *Pool) spaces(m *member, method wipe) []space {
	if time.Now().Before(m.restsUntil) {
		return nil
	}
	if method == wipeSecure && !m.secureErase() {
		return nil
	}
	found := free(&m.table, method)
	if p.options.Layout == LayoutWhole && (len(found) != 1 || found[0] != room(&m.table)) {
		return nil
	}
	return found
}

// place chooses the disk and the place of a new volume. The caller finds it in the
// table of the disk.
func (p *Pool) place(size volume.Range, method wipe) (*member, space, error) {
	if len(p.members) == 0 {
		return nil, space{}, fmt.Errorf("%w: the pool has no disk: %s", volume.ErrExhausted, p.whyNone())
	}
	if method == wipeSecure && !p.anySecure() {
		return nil, space{}, fmt.Errorf("%w: %s %s: no disk of the pool on this node can erase securely", volume.ErrExhausted, wipeKey, method)
	}
	if p.options.Layout == LayoutWhole {
		return p.placeWhole(size, method)
	}
	largest, preferred := p.largest(method)
	bytes, err := size.Choose(unit, preferred, unit)
	if err != nil {
		return nil, space{}, err
	}
	for _, m := range p.usable() {
		for _, hole := range p.spaces(m, method) {
			if hole.size() >= bytes {
				return m, space{hole.start, hole.start + bytes}, nil
			}
		}
	}
	if bytes > largest {
		return nil, space{}, fmt.Errorf("%w: %d bytes are more than the %d of the largest disk of the pool", volume.ErrOutOfRange, bytes, largest)
	}
	return nil, space{}, p.exhausted(fmt.Sprintf("%d bytes in one piece", bytes))
}

// largest returns how much the largest disk has for a volume, and the size of one
// for which none is required.
func (p *Pool) largest(method wipe) (disk, preferred uint64) {
	hole := uint64(0)
	for _, m := range p.members {
		disk = max(disk, room(&m.table).size())
		for _, s := range p.spaces(m, method) {
			hole = max(hole, s.size())
		}
	}
	return disk, min(preferredSize, hole)
}

// placeWhole chooses the smallest free disk whose size is in the range.
func (p *Pool) placeWhole(size volume.Range, method wipe) (*member, space, error) {
	var best *member
	fits := false
	for _, m := range p.usable() {
		all := room(&m.table)
		if !size.Contains(all.size()) {
			continue
		}
		fits = true
		if len(p.spaces(m, method)) == 1 && (best == nil || all.size() < room(&best.table).size()) {
			best = m
		}
	}
	if !fits {
		return nil, space{}, fmt.Errorf("%w: no disk of the pool has from %d to %d bytes", volume.ErrOutOfRange, size.Required, size.Limit)
	}
	if best == nil {
		return nil, space{}, p.exhausted(fmt.Sprintf("a whole disk of at least %d bytes", size.Required))
	}
	return best, room(&best.table), nil
}

func (p *Pool) anySecure() bool {
	for _, m := range p.members {
		if m.secureErase() {
			return true
		}
	}
	return false
}

func (p *Pool) exhausted(what string) error {
	wiping, unwiped := uint64(0), uint64(0)
	for _, m := range p.members {
		wiping += m.sum(wipingType)
		unwiped += m.sum(unwipedType)
	}
	return fmt.Errorf("%w: the pool has not %s free; %d bytes are still being wiped, and %d are only for volumes with %s %s",
		volume.ErrExhausted, what, wiping, unwiped, wipeKey, wipeNone)
}

// whyNone says why the disks of the machine are not in the pool.
func (p *Pool) whyNone() string {
	text := "none is chosen by its selector"
	for _, refused := range p.refused {
		if refused.state != unmatched {
			text = refused.disk.Name + ": " + refused.reason
		}
	}
	return text
}

// Capacity returns what can be made with the parameters now. Errors:
// volume.ErrInvalid.
func (p *Pool) Capacity(_ context.Context, parameters map[string]string) (volume.Capacity, error) {
	method, err := parseParameters(parameters, p.wipe)
	if err != nil {
		return volume.Capacity{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.discover(false); err != nil {
		return volume.Capacity{}, err
	}
	if method != wipeNone {
		// A scheduler that sees too little never asks for a volume.
		if err := p.wipeUnwiped(); err != nil {
			p.logger.Error(err, "Space that nobody wiped cannot be wiped now")
		}
	}
	return p.capacity(method), nil
}

func (p *Pool) capacity(method wipe) volume.Capacity {
	var capacity volume.Capacity
	for _, m := range p.members {
		for _, hole := range p.spaces(m, method) {
			capacity.Available += hole.size()
			capacity.MaxVolume = max(capacity.MaxVolume, hole.size())
			if p.options.Layout == LayoutWhole && (capacity.MinVolume == 0 || hole.size() < capacity.MinVolume) {
				capacity.MinVolume = hole.size()
			}
		}
	}
	if p.options.Layout != LayoutWhole {
		capacity.MinVolume = min(unit, capacity.MaxVolume)
	}
	return capacity
}
