package disk

import (
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
)

// space is a part of a disk in bytes, aligned to unit.
type space struct{ start, end uint64 }

func (s space) size() uint64 { return s.end - s.start }

// room returns the space of a disk that volumes can have: all behind the claim.
func room(table *gpt.Table) space {
	_, end := table.Usable()
	return space{table.Entries[claimIndex].End(), end / unit * unit}
}

// free returns the spaces of a disk that can be given to a volume with a wipe, in
// their order.
func free(table *gpt.Table, method wipe) []space {
	if freeIndex(table) < 0 {
		return nil
	}
	all := room(table)
	next := all.start
	var found []space
	for _, i := range table.Sorted() {
		entry := &table.Entries[i]
		if entry.Type == unwipedType && method == wipeNone {
			continue
		}
		if entry.Start > next {
			found = append(found, space{next, entry.Start / unit * unit})
		}
		next = max(next, (entry.End()+unit-1)/unit*unit)
	}
	found = append(found, space{next, all.end})
	return slices.DeleteFunc(found, func(s space) bool { return s.start >= s.end })
}

// freeIndex returns the index of the first entry that is not used, or -1.
func freeIndex(table *gpt.Table) int {
	return slices.IndexFunc(table.Entries[:], func(e gpt.Entry) bool { return !e.Used() })
}

// take adds an entry to the table, in place of the space that nobody wiped.
func take(table *gpt.Table, added gpt.Entry) (index int) {
	for i := range table.Entries {
		entry := &table.Entries[i]
		switch {
		case entry.Type != unwipedType || entry.End() <= added.Start || entry.Start >= added.End():
		case entry.End() <= added.End():
			*entry = gpt.Entry{}
		default:
			entry.Start, entry.Size = added.End(), entry.End()-added.End()
		}
	}
	index = freeIndex(table)
	table.Entries[index] = added
	return index
}
