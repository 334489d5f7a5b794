package gpt

import (
	"cmp"
	"fmt"
	"slices"
)

// Entries is how many entries a table has.
const Entries = 128

// MaxName is the length of the longest name of an entry, in UTF-16 code units
// (UEFI 2.10, 5.3.3).
const MaxName = 36

// Entry describes a partition. One whose Type is zero is not used.
type Entry struct {
	// Type says what the partition is for, ID which one it is.
	Type, ID GUID
	// Start and Size are its place on the disk in bytes.
	Start, Size uint64
	// Attributes are flags, of which bits 48 to 63 belong to the type.
	Attributes uint64
	// Name is for people.
	Name string
}

// Used reports whether the entry describes a partition.
func (e Entry) Used() bool { return e.Type != GUID{} }

// End is the first byte behind the partition.
func (e Entry) End() uint64 { return e.Start + e.Size }

// Table is the partition table of a disk. Tables can be compared with ==.
type Table struct {
	// Disk identifies the disk.
	Disk GUID
	// BlockSize is the logical block size of the disk in bytes.
	BlockSize uint64
	// Size is the size of the disk in bytes when the table was made.
	Size uint64
	// Entries are the partitions; the kernel counts them from 1.
	Entries [Entries]Entry
}

// New returns a table without partitions for a disk with a size and a logical
// block size in bytes.
func New(disk GUID, size, blockSize uint64) (Table, error) {
	table := Table{Disk: disk, BlockSize: blockSize}
	if err := checkBlockSize(blockSize); err != nil {
		return table, err
	}
	table.Size = size / blockSize * blockSize
	if table.Size < table.primaryLength()+table.backupLength()+blockSize {
		return table, fmt.Errorf("a disk of %d bytes is too small for a partition table", size)
	}
	return table, nil
}

// checkBlockSize allows the powers of two from the smallest that disks have to
// the size of the entries.
func checkBlockSize(size uint64) error {
	if size < 512 || size > entriesLength || size&(size-1) != 0 {
		return fmt.Errorf("a logical block size of %d bytes is not supported", size)
	}
	return nil
}

// Usable returns the first byte that a partition may have, and the first behind
// the last one.
func (t *Table) Usable() (start, end uint64) {
	return t.primaryLength(), t.Size - t.backupLength()
}

// Sorted returns the indices of the used entries in the order of their places.
func (t *Table) Sorted() []int {
	var used []int
	for i := range t.Entries {
		if t.Entries[i].Used() {
			used = append(used, i)
		}
	}
	slices.SortFunc(used, func(a, b int) int { return cmp.Compare(t.Entries[a].Start, t.Entries[b].Start) })
	return used
}

// Check returns an error where a partition lies outside of the usable space or
// over another, or has the ID or a name that it cannot have.
func (t *Table) Check() error {
	start, end := t.Usable()
	ids := map[GUID]int{}
	for _, i := range t.Sorted() {
		entry := &t.Entries[i]
		switch {
		case entry.Size == 0 || entry.Start%t.BlockSize != 0 || entry.Size%t.BlockSize != 0:
			return fmt.Errorf("partition %d, %d bytes at %d, is not one or more blocks of %d bytes", i+1, entry.Size, entry.Start, t.BlockSize)
		case entry.Start < start:
			return fmt.Errorf("partition %d begins at %d, over another or before the usable space: the first free byte is %d", i+1, entry.Start, start)
		case entry.Start > end || entry.Size > end-entry.Start:
			return fmt.Errorf("partition %d, %d bytes at %d, ends behind the usable space, which ends at %d", i+1, entry.Size, entry.Start, end)
		}
		if other, exists := ids[entry.ID]; exists {
			return fmt.Errorf("partitions %d and %d have the same ID %s", other+1, i+1, entry.ID)
		}
		if _, err := encodeName(entry.Name); err != nil {
			return fmt.Errorf("partition %d: %w", i+1, err)
		}
		ids[entry.ID] = i
		start = entry.End()
	}
	return nil
}
