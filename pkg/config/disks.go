package config

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DiskPool is a set of disks.
type DiskPool struct {
	// Match says which disks are the pool's.
	Match Match
	// Exclude says which of them are not.
	Exclude []Match
	// Layout is "partition" for several volumes a disk, or "whole" for one.
	Layout string
	// Wipe is how a volume is wiped whose StorageClass does not say: "discard",
	// "zero" or "secure".
	Wipe string
}

// Match selects the disks of which everything holds that is given; something is.
type Match struct {
	// Transport is how the disk is attached, such as "nvme"; "": not given.
	Transport string
	// Rotational tells disks that turn from those that do not; nil: not given.
	Rotational *bool
	// MinSize and MaxSize are the sizes of the smallest and the largest disk in
	// bytes; 0: not given.
	MinSize, MaxSize uint64
	// Model, Serial and WWID are patterns (path.Match) of what the disk states;
	// "": not given.
	Model, Serial, WWID string
	// Paths are patterns (filepath.Match) of which one must match a path of the
	// disk; none: not given.
	Paths []string
}

func readDiskPool(node *yaml.Node) (DiskPool, error) {
	pool := DiskPool{Layout: "partition", Wipe: "discard"}
	err := fields{
		{"match", into(&pool.Match, readMatch("match"))},
		{"exclude", into(&pool.Exclude, listOf(readMatch("an entry of exclude")))},
		{"layout", into(&pool.Layout, oneOf("partition", "whole"))},
		{"wipe", into(&pool.Wipe, oneOf("discard", "zero", "secure"))},
	}.read(node, "disk")
	if err != nil {
		return DiskPool{}, err
	}
	if pool.Match.isEmpty() {
		return DiskPool{}, fmt.Errorf("line %d: disk has no match; say which disks it may take", node.Line)
	}
	if pool.excludes(pool.Match) {
		return DiskPool{}, fmt.Errorf("line %d: exclude has every disk that match has; narrow exclude", node.Line)
	}
	return pool, nil
}

// readMatch returns what reads a Match, which errors call what.
func readMatch(what string) func(*yaml.Node) (Match, error) {
	return func(node *yaml.Node) (Match, error) {
		var m Match
		err := fields{
			{"transport", into(&m.Transport, readTransport)},
			{"rotational", into(&m.Rotational, pointerTo(readBool))},
			{"minSize", into(&m.MinSize, readSize)},
			{"maxSize", into(&m.MaxSize, readSize)},
			{"model", into(&m.Model, readGlob)},
			{"serial", into(&m.Serial, readGlob)},
			{"wwid", into(&m.WWID, readGlob)},
			{"paths", into(&m.Paths, readPaths)},
		}.read(node, what)
		if err != nil {
			return Match{}, err
		}
		if m.isEmpty() {
			return Match{}, fmt.Errorf("line %d: %s says nothing of the disks; give it a key with a value", node.Line, what)
		}
		if m.MaxSize != 0 && m.MinSize > m.MaxSize {
			return Match{}, fmt.Errorf("line %d: no disk has %s: minSize is larger than maxSize", node.Line, what)
		}
		return m, nil
	}
}

// readTransport reads one of the words that pkg/blockdev has for a transport.
func readTransport(node *yaml.Node) (string, error) {
	return oneOf("nvme", "sata", "sas", "scsi", "usb", "virtio", "xen", "mmc", "iscsi", "fc")(node)
}

// readPaths refuses an empty list: it might be meant as any path, or as none.
func readPaths(node *yaml.Node) ([]string, error) {
	paths, err := listOf(readPathPattern)(node)
	if err == nil && len(paths) == 0 {
		return nil, fmt.Errorf("line %d: paths is empty; name one such as /dev/disk/by-id/nvme-*, or remove the key", node.Line)
	}
	return paths, err
}

func (m Match) isEmpty() bool { return m.covers(Match{}) }

// covers reports whether every disk that the other selects is selected as well,
// as far as that can be told without the disks.
func (m Match) covers(other Match) bool {
	return coversPattern(m.Transport, other.Transport) &&
		coversPattern(m.Model, other.Model) && coversPattern(m.Serial, other.Serial) && coversPattern(m.WWID, other.WWID) &&
		(m.Rotational == nil || other.Rotational != nil && *m.Rotational == *other.Rotational) &&
		m.MinSize <= other.MinSize &&
		(m.MaxSize == 0 || other.MaxSize != 0 && m.MaxSize >= other.MaxSize) &&
		coversPaths(m.Paths, other.Paths)
}

// coversPattern compares two patterns as text, or matches a text without
// wildcards.
func coversPattern(pattern, other string) bool {
	if pattern == "" || pattern == other {
		return true
	}
	matched, err := path.Match(pattern, other)
	return err == nil && matched && other != "" && !strings.ContainsAny(other, `*?[\`)
}

// coversPaths reports whether each of the other patterns is covered by one.
func coversPaths(patterns, others []string) bool {
	if len(patterns) == 0 || len(others) == 0 {
		return len(patterns) == 0
	}
	for _, other := range others {
		covers := func(pattern string) bool { return coversPattern(pattern, other) }
		if !slices.ContainsFunc(patterns, covers) {
			return false
		}
	}
	return true
}

// excludes reports whether no disk that a match selects can be the pool's.
func (d DiskPool) excludes(match Match) bool {
	return slices.ContainsFunc(d.Exclude, func(excluded Match) bool { return excluded.covers(match) })
}

// checkMatch refuses two pools of which one may take all disks of the other: who
// came first would have them.
func (p Pool) checkMatch(above Pool) error {
	overlap := func(wide, narrow *DiskPool) bool {
		return wide.Match.covers(narrow.Match) && !wide.excludes(narrow.Match)
	}
	if overlap(p.Disk, above.Disk) || overlap(above.Disk, p.Disk) {
		return fmt.Errorf("line %d: the disks of pool %q are those of pool %q in line %d as well; exclude them from one, or narrow its match",
			p.Line, p.Name, above.Name, above.Line)
	}
	return nil
}
