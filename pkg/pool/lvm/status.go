package lvm

import (
	"cmp"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

const (
	// warnData and warnMetadata are how much of a thin pool is used, in percent, when the
	// log says so: early enough to give it more.
	warnData     = 80
	warnMetadata = 60
)

// Status is what is known of the volume group, as it was seen last. Sizes are in bytes.
type Status struct {
	// Problem is why nothing can be made; nil: something can.
	Problem error
	// Size is that of the volume group, or of the thin pool; Free what is free in the
	// volume group; Promised the sizes of all volumes and snapshots of the thin pool.
	Size, Free, Promised uint64
	// Data and Metadata are how much of a thin pool is used, in percent.
	Data, Metadata float64
	// Volumes and Snapshots are how many the pool has.
	Volumes, Snapshots int
	// Wiping are the volumes that were deleted and are wiped, by their names.
	Wiping []Wiping
	// entries are the volumes, whole or not.
	entries map[string]seenVolume
}

// seenVolume is what was seen of a volume.
type seenVolume struct {
	device device
	// medium is what the volume is, in words.
	medium volume.Medium
	// partial says that a part of it is on a disk that has gone, err why its tags cannot
	// be understood.
	partial bool
	err     error
}

// Wiping is how far the wiping of a deleted volume is.
type Wiping struct {
	// LogicalVolume is its name.
	LogicalVolume string
	// Size is how many bytes it has, Left how many of them remain to be wiped.
	Size, Left uint64
	// Err is why the last attempt failed; it is made again.
	Err error
}

// Status returns what was seen last.
func (p *Pool) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	status := p.status
	for _, space := range p.wiping {
		status.Wiping = append(status.Wiping, Wiping{space.Name, space.Size, space.Size - space.wiped, space.failed})
	}
	slices.SortFunc(status.Wiping, func(a, b Wiping) int { return cmp.Compare(a.LogicalVolume, b.LogicalVolume) })
	return status
}

// see keeps what was seen of the volume group, and logs what needs an administrator.
func (p *Pool) see(g group) {
	seen := Status{Size: g.Size, Free: g.Free, entries: map[string]seenVolume{}}
	for _, e := range g.entries {
		switch e.kind {
		case volumeKind:
			seen.Volumes++
			seen.entries[e.name] = seenVolume{deviceOf(g.Group, e), mediumOf(g.Group, e), e.Partial, e.err}
		case snapshotKind:
			seen.Snapshots++
		}
	}
	errorWhenFull := true
	for _, v := range g.Volumes {
		switch {
		case p.options.ThinPool == "":
		case v.Pool == p.options.ThinPool:
			seen.Promised += v.Size
		case v.Name == p.options.ThinPool && v.Thin != nil:
			seen.Size, seen.Data, seen.Metadata, errorWhenFull = v.Size, v.Thin.Data, v.Thin.Metadata, v.Thin.ErrorWhenFull
		}
	}
	p.mu.Lock()
	before := p.status
	seen.Problem = before.Problem
	p.status = seen
	p.mu.Unlock()
	if before.Data < warnData && seen.Data >= warnData || before.Data < maxData && seen.Data >= maxData {
		p.logger.Error(nil, "The thin pool is filling up; give it more with lvextend, or delete volumes", "thinPool", p.options.ThinPool,
			"percent", seen.Data, "size", seen.Size, "promised", seen.Promised, "writesFailWhenFull", errorWhenFull)
	}
	if before.Metadata < warnMetadata && seen.Metadata >= warnMetadata {
		p.logger.Error(nil, "The metadata of the thin pool is filling up; give it more with lvextend --poolmetadatasize", "thinPool", p.options.ThinPool, "percent", seen.Metadata)
	}
}

// note keeps why the pool cannot be used, or that it can, and logs the change.
func (p *Pool) note(problem error) {
	p.mu.Lock()
	before := p.status.Problem
	p.status.Problem = problem
	p.mu.Unlock()
	switch {
	case problem != nil && (before == nil || before.Error() != problem.Error()):
		p.logger.Error(problem, "The pool cannot be used")
	case problem == nil && before != nil:
		p.logger.Info("The pool can be used again")
	}
}
