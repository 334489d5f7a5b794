package signature

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

const (
	// edge is the length of the beginning and of the end, in bytes, that must be
	// zero. The marks of the table that are counted from the end, and all but the
	// copies of those from the beginning, are well inside: the farthest is the
	// second header of LUKS2 at 4 MiB.
	edge = 16 << 20
	// chunk is how much is read at a time, in bytes.
	chunk = 1 << 20
	// block is what all reads are multiples of, and begin at multiples of, but at
	// the very end: they can go past the page cache on any disk. No mark crosses the
	// border of two.
	block = 4096
	// samples is how many blocks between the edges are read at least, evenly spread, as
	// far as there are so many. On a disk of which a hundredth is not zero, all of them
	// are zero once in 30,000 times; a disk that seeks has read them in seconds.
	samples = 1024
)

// Unknown is the Kind of data that has no known mark.
const Unknown = "unknown data"

// Finding is a sign that a disk is not free.
type Finding struct {
	// Kind says in words what was found, such as "ext2/3/4 filesystem".
	Kind string
	// Offset is where its mark is, or the first byte that is not zero, in bytes.
	Offset int64
}

// String is for a message.
func (f Finding) String() string { return fmt.Sprintf("%s at %d", f.Kind, f.Offset) }

// Find looks for signs of data on a disk of the given size in bytes and returns
// them by their offsets. The disk is free only if there are none.
//
// There is one of the kind Unknown only where there is no other. A disk that
// cannot be read is an error, and so is one that ends before its size: neither
// is free.
//
// It reads 32 MiB in order and some 1,050 blocks between, which are looked at for
// marks only once anything is found, and nothing twice.
func Find(disk io.ReaderAt, size int64) ([]Finding, error) {
	if size <= 0 {
		return nil, fmt.Errorf("look for data on a disk of %d bytes: it has none to be read", size)
	}
	marks := marksOn(size)
	buffer := make([]byte, chunk)
	var found []Finding
	unknown := int64(-1)
	for _, part := range partsOf(size, marks) {
		if part.sample && (unknown >= 0 || len(found) > 0) {
			continue // The disk is not free, and there is no mark to say whose it is.
		}
		data := buffer[:part.end-part.start]
		if err := read(disk, data, part.start); err != nil {
			return nil, fmt.Errorf("look for data at %d: %w", part.start, err)
		}
		dirty := firstNonzero(data)
		if dirty < 0 {
			continue
		}
		if unknown < 0 {
			unknown = part.start + int64(dirty)
		}
		found = append(found, match(data, part, marks)...)
	}
	if len(found) == 0 && unknown >= 0 {
		found = []Finding{{Unknown, unknown}}
	}
	return found, nil
}

// part is a range of the disk that is read at once.
type part struct {
	start, end int64
	// sample says that no mark can be there.
	sample bool
}

// partsOf returns what is to be read, and must be zero: the edges, and between them
// the blocks of the marks and the samples, in order and without overlap.
func partsOf(size int64, marks []mark) []part {
	head := min(edge, size)
	tail := max(head, (size-edge)/block*block)
	var parts []part
	edges := func(start, end int64) {
		for ; start < end; start += chunk {
			parts = append(parts, part{start, min(start+chunk, end), false})
		}
	}
	edges(0, head)
	// The blocks between, and whether they are samples only.
	between := map[int64]bool{}
	for start := head; start < tail; start += max((tail-head)/samples/block*block, block) {
		between[start] = true
	}
	for _, m := range marks {
		if start := m.offset / block * block; start >= head && start < tail {
			between[start] = false
		}
	}
	for _, start := range slices.Sorted(maps.Keys(between)) {
		parts = append(parts, part{start, min(start+block, tail), between[start]})
	}
	edges(tail, size)
	return parts
}

// read fills data from the offset on.
func read(disk io.ReaderAt, data []byte, offset int64) error {
	n, err := disk.ReadAt(data, offset)
	if n == len(data) {
		return nil // It may say EOF with the last byte.
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// zeros is a block that firstNonzero compares with.
var zeros [block]byte

// firstNonzero returns the index of the first byte that is not zero, or -1.
func firstNonzero(data []byte) int {
	for start := 0; start < len(data); start += block {
		piece := data[start:min(start+block, len(data))]
		if bytes.Equal(piece, zeros[:len(piece)]) {
			continue
		}
		return start + slices.IndexFunc(piece, func(b byte) bool { return b != 0 })
	}
	return -1
}

// match returns the findings in the data of a part. Marks are sorted by their offsets.
func match(data []byte, part part, marks []mark) []Finding {
	first, _ := slices.BinarySearchFunc(marks, part.start, func(m mark, offset int64) int {
		return cmp.Compare(m.offset, offset)
	})
	var found []Finding
	for _, m := range marks[first:] {
		if m.offset >= part.end {
			break
		}
		if bytes.HasPrefix(data[m.offset-part.start:], []byte(m.magic)) {
			found = append(found, Finding{m.kind, m.offset})
		}
	}
	return found
}
