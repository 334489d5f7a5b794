package signature

import (
	"cmp"
	"slices"
)

// signature is a mark that one kind of content leaves.
type signature struct {
	// kind says in words what leaves the mark.
	kind string
	// magic is the mark.
	magic string
	// at are the offsets of the mark in bytes: from the beginning, or, where they
	// are negative, from the end.
	at []int64
	// unit rounds the end down to a multiple before that; 0: 512 bytes.
	unit int64
}

// mark is a signature at one place of one disk.
type mark struct {
	offset      int64
	kind, magic string
}

// marksOn returns the marks that a disk of the given size in bytes can have, in
// the order of their offsets, each once.
func marksOn(size int64) []mark {
	var marks []mark
	for _, table := range [][]signature{partitionTables, filesystems, layers, arrays} {
		for _, s := range table {
			for _, at := range s.at {
				marks = append(marks, mark{s.place(at, size), s.kind, s.magic})
			}
		}
	}
	for group := range int64(3) {
		marks = append(marks, mark{(group + 1) * xfsGroup(size), xfs, xfsMagic})
	}
	marks = slices.DeleteFunc(marks, func(m mark) bool {
		return m.offset < 0 || m.offset+int64(len(m.magic)) > size
	})
	slices.SortFunc(marks, func(a, b mark) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.kind, b.kind), cmp.Compare(a.magic, b.magic))
	})
	return slices.Compact(marks)
}

// place turns an offset of the table into one of a disk.
func (s signature) place(at, size int64) int64 {
	if at >= 0 {
		return at
	}
	unit := s.unit
	if unit == 0 {
		unit = 512
	}
	return size/unit*unit + at
}

// xfsGroup returns the size in bytes of an allocation group of XFS as mkfs.xfs
// chooses it for a disk with blocks of 4 KiB: a quarter of the disk, and less than 1 TiB.
// Each group begins with a copy of the superblock (calc_default_ag_geometry and
// XFS_AG_MAX_BLOCKS of xfsprogs).
func xfsGroup(size int64) int64 {
	const xfsBlock, most = 4096, 1<<28 - 1
	return min((size/xfsBlock+3)/4, most) * xfsBlock
}

// each returns count offsets from the first on.
func each(first, step int64, count int) []int64 {
	offsets := make([]int64, count)
	for i := range offsets {
		offsets[i] = first + int64(i)*step
	}
	return offsets
}

// plus returns the sums of all pairs.
func plus(bases, offsets []int64) []int64 {
	var sums []int64
	for _, base := range bases {
		for _, offset := range offsets {
			sums = append(sums, base+offset)
		}
	}
	return sums
}
