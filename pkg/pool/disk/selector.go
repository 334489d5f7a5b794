package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Selector chooses disks by facts. All that are given must hold; a disk that does
// not state one of them is not chosen.
type Selector struct {
	// Transport is one of blockdev.Transports, or, to exclude them, loop or one of layers.
	Transport string
	// Rotational says whether the disk has moving parts; nil: either.
	Rotational *bool
	// MinSize and MaxSize bound the size in bytes, both included; 0: not bounded.
	MinSize, MaxSize uint64
	// Model, Serial and WWID are patterns (path.Match) of what the disk states.
	Model, Serial, WWID string
	// Paths are patterns (filepath.Match) of the paths of device nodes, of which
	// one must hold. Links are followed and lead to the disk by its number.
	Paths []string
}

// refusal says why a disk is not a candidate.
type refusal struct {
	disk  blockdev.Disk
	state refusalState
	// reason is for an operator.
	reason string
	// ours says that the disk belongs to the pool all the same.
	ours bool
	// restsUntil is when a disk that failed may be looked at again.
	restsUntil time.Time
}

// refusalState is one of a few words, so that it can be the label of a metric.
type refusalState string

const (
	// unmatched: the selector does not choose the disk.
	unmatched refusalState = "unmatched"
	// excluded: a selector of exclusions chooses the disk.
	excluded refusalState = "excluded"
	// unfit: a disk of this kind, or in this state, is never used.
	unfit refusalState = "unfit"
	// unreadable: a fact of the disk cannot be read.
	unreadable refusalState = "unreadable"
)

// layers are the drivers whose devices are built upon others, lose what is
// written to them, or hold media that are exchanged: they are never used
// (Documentation/admin-guide/devices.txt).
var layers = []string{"bcache", "dm", "drbd", "fd", "md", "nbd", "ram", "sr", "zd", "zram"}

// candidates sorts the disks of the machine into those that match chooses and
// none of exclude, and the others. Nothing is opened: whether a candidate is
// free remains to be seen, and so does whether it is still the disk with its
// DiskSeq.
//
// A device that is no hardware, such as a loop device, is chosen only by its path
// without wildcards, and does not appear at all unless it is chosen.
//
// Errors: volume.ErrInvalid for a selector that is malformed, or chooses by nothing.
func candidates(sysfs blockdev.Sysfs, match Selector, exclude []Selector) ([]blockdev.Disk, []refusal, error) {
	chosen, err := newMatcher(match)
	if err != nil {
		return nil, nil, fmt.Errorf("match: %w", err)
	}
	var exclusions []matcher
	for i, selector := range exclude {
		exclusion, err := newMatcher(selector)
		if err != nil {
			return nil, nil, fmt.Errorf("exclude, entry %d: %w", i+1, err)
		}
		exclusions = append(exclusions, exclusion)
	}
	disks, err := sysfs.Disks()
	if err != nil {
		return nil, nil, err
	}
	var found []blockdev.Disk
	var refused []refusal
	for _, disk := range disks {
		switch state, reason := judge(disk, chosen, exclusions, sysfs); {
		case state == "":
			found = append(found, disk)
		case state != unmatched || isHardware(disk):
			refused = append(refused, refusal{disk: disk, state: state, reason: reason})
		}
	}
	return found, refused, nil
}

// judge returns why the disk is no candidate; an empty state says that it is one.
func judge(disk blockdev.Disk, match matcher, exclude []matcher, sysfs blockdev.Sysfs) (refusalState, string) {
	if disk.Err != nil {
		return unreadable, disk.Err.Error()
	}
	if reason := match.mismatch(disk); reason != "" {
		return unmatched, reason
	}
	if !isHardware(disk) && !match.numbers[disk.Number] {
		return unmatched, "it is no hardware, and no path without wildcards leads to it"
	}
	for _, exclusion := range exclude {
		chosen, err := exclusion.excludes(disk, sysfs)
		if err != nil {
			return unreadable, err.Error()
		}
		if chosen {
			return excluded, "the configuration excludes it"
		}
	}
	if reason := match.unfit(disk); reason != "" {
		return unfit, reason
	}
	return "", ""
}

// isHardware reports whether the disk is a real one, or that of a virtual machine.
func isHardware(disk blockdev.Disk) bool {
	return slices.Contains(blockdev.Transports(), disk.Transport)
}

// matcher is a Selector whose paths have been looked up.
type matcher struct {
	Selector
	// numbers are those of the block devices that Paths lead to; true where a
	// path without wildcards does.
	numbers map[linux.DeviceNumber]bool
}

func newMatcher(selector Selector) (matcher, error) {
	if err := selector.check(); err != nil {
		return matcher{}, err
	}
	numbers, err := lookUp(selector.Paths)
	return matcher{selector, numbers}, err
}

// check refuses a selector that chooses by nothing, and so would choose all disks,
// and one that can choose none. Errors: volume.ErrInvalid.
func (s Selector) check() error {
	patterns := s.patterns()
	if len(patterns) == 0 && len(s.Paths) == 0 && s.Transport == "" && s.Rotational == nil && s.MinSize == 0 && s.MaxSize == 0 {
		return fmt.Errorf("%w: the selector is empty; give at least one fact of the disks that are meant", volume.ErrInvalid)
	}
	if s.MaxSize != 0 && s.MinSize > s.MaxSize {
		return fmt.Errorf("%w: no disk has at least %d and at most %d bytes", volume.ErrInvalid, s.MinSize, s.MaxSize)
	}
	if known := slices.Concat(blockdev.Transports(), []string{"loop"}, layers); s.Transport != "" && !slices.Contains(known, s.Transport) {
		return fmt.Errorf("%w: transport %q is unknown; give one of %s", volume.ErrInvalid, s.Transport, strings.Join(blockdev.Transports(), ", "))
	}
	for _, p := range patterns {
		if _, err := path.Match(p.pattern, ""); err != nil {
			return fmt.Errorf("%w: %s %q is no pattern: %w", volume.ErrInvalid, p.name, p.pattern, err)
		}
	}
	for _, pattern := range s.Paths {
		if _, err := filepath.Match(pattern, ""); err != nil || !filepath.IsAbs(pattern) {
			return fmt.Errorf("%w: path %q is no pattern of absolute paths", volume.ErrInvalid, pattern)
		}
	}
	return nil
}

// fact is a pattern that a selector has for what a disk states.
type fact struct {
	name, pattern string
	stated        func(blockdev.Disk) string
}

// patterns returns those that are given.
func (s Selector) patterns() []fact {
	return slices.DeleteFunc([]fact{
		{"model", s.Model, func(d blockdev.Disk) string { return d.Model }},
		{"serial", s.Serial, func(d blockdev.Disk) string { return d.Serial }},
		{"wwid", s.WWID, func(d blockdev.Disk) string { return d.WWID }},
	}, func(f fact) bool { return f.pattern == "" })
}

// mismatch returns which fact of the disk is another than the selector wants, or
// nothing where all are as it wants.
func (m matcher) mismatch(disk blockdev.Disk) string {
	switch {
	case m.Transport != "" && disk.Transport != m.Transport:
		return fmt.Sprintf("its transport is %s, not %s", disk.Transport, m.Transport)
	case m.Rotational != nil && disk.Rotational != *m.Rotational:
		return fmt.Sprintf("rotational is %t", disk.Rotational)
	case disk.Size < m.MinSize:
		return fmt.Sprintf("it has %d bytes, fewer than %d", disk.Size, m.MinSize)
	case m.MaxSize != 0 && disk.Size > m.MaxSize:
		return fmt.Sprintf("it has %d bytes, more than %d", disk.Size, m.MaxSize)
	}
	for _, p := range m.patterns() {
		stated := p.stated(disk)
		if stated == "" {
			return fmt.Sprintf("it states no %s", p.name)
		}
		if matched, err := path.Match(p.pattern, stated); err != nil || !matched {
			return fmt.Sprintf("its %s %q is not like %q", p.name, stated, p.pattern)
		}
	}
	if _, named := m.numbers[disk.Number]; len(m.Paths) > 0 && !named {
		return "none of the paths leads to it"
	}
	return ""
}

// unfit returns why a disk that the selector chooses can never be used.
func (m matcher) unfit(disk blockdev.Disk) string {
	switch {
	case slices.Contains(layers, disk.Transport):
		return fmt.Sprintf("devices of the driver %s are not used", disk.Transport)
	case disk.Size == 0:
		return "it has no medium"
	case disk.ReadOnly:
		return "it is read-only"
	default:
		return ""
	}
}

// excludes reports whether the selector of an exclusion chooses the disk. A path
// that leads to a partition excludes the disk that it is on.
func (m matcher) excludes(disk blockdev.Disk, sysfs blockdev.Sysfs) (bool, error) {
	for number := range m.numbers {
		overlap, err := sysfs.Overlap(number, disk.Number)
		if err != nil {
			return false, err
		}
		if overlap {
			m.numbers = map[linux.DeviceNumber]bool{disk.Number: true} // Of this copy of m alone.
			break
		}
	}
	return m.mismatch(disk) == "", nil
}

// lookUp returns the numbers of the block devices that the patterns lead to. A path
// that leads nowhere, or to something else, is left out.
func lookUp(patterns []string) (map[linux.DeviceNumber]bool, error) {
	numbers := map[linux.DeviceNumber]bool{}
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", pattern, err)
		}
		exact := !strings.ContainsAny(pattern, `*?[\`)
		for _, name := range found {
			number, ok, err := blockNumber(name)
			if err != nil {
				return nil, err
			}
			if ok {
				numbers[number] = numbers[number] || exact
			}
		}
	}
	return numbers, nil
}

// blockNumber returns the number of the block device that a path leads to, and
// whether it does lead to one. Nothing is opened.
func blockNumber(name string) (linux.DeviceNumber, bool, error) {
	node, err := linux.OpenPath(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return linux.DeviceNumber{}, false, nil
	}
	if err != nil {
		return linux.DeviceNumber{}, false, fmt.Errorf("look up device: %w", err)
	}
	defer node.Close()
	info, err := linux.Stat(node)
	return info.Device, err == nil && info.IsBlockDevice(), err
}
