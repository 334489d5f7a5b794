package disk

import (
	"cmp"
	"slices"
)

// Status is what is known of the disks of the machine.
type Status struct {
	// Disks are those of the pool, in the order of their IDs.
	Disks []Member
	// Refused are the others, in the order of their names.
	Refused []Refused
}

// Member is what is known of a disk of the pool. Sizes are in bytes.
type Member struct {
	// Path is the node of the disk, ID is that of its partition table.
	Path, ID string
	// Size is all that volumes can have, Free what they can have now, Unwiped what
	// only those with wipe none can have.
	Size, Free, Unwiped uint64
	// Wiping are the spaces that are being wiped.
	Wiping []Wiping
}

// Wiping is how far the wiping of a space is.
type Wiping struct {
	// Start is where the space begins on the disk, in bytes.
	Start uint64
	// Size is how many bytes are to be wiped, Left how many of them remain.
	Size, Left uint64
	// Err is why the last attempt failed; it is made again.
	Err error
}

// Refused is a disk that is not in the pool.
type Refused struct {
	// Name is the kernel's name of the disk.
	Name string
	// State is one of a few words: unmatched, excluded, unfit, unreadable, busy,
	// failed, occupied, foreign or twin.
	State string
	// Reason is for an operator.
	Reason string
}

// Status returns what was known of the disks when they were looked at last. The
// caller does not change it.
func (p *Pool) Status() Status { return p.known.Load().status }

func (p *Pool) status() Status {
	var status Status
	for _, m := range p.usable() {
		status.Disks = append(status.Disks, m.status())
	}
	for _, refused := range p.refused {
		status.Refused = append(status.Refused, Refused{refused.disk.Name, string(refused.state), refused.reason})
	}
	slices.SortFunc(status.Refused, func(a, b Refused) int { return cmp.Compare(a.Name, b.Name) })
	return status
}

func (m *member) status() Member {
	status := Member{Path: m.disk.NodePath, ID: m.table.Disk.String(), Size: room(&m.table).size(), Unwiped: m.sum(unwipedType)}
	for _, hole := range free(&m.table, wipeDiscard) {
		status.Free += hole.size()
	}
	for i := range m.table.Entries {
		entry := &m.table.Entries[i]
		if entry.Type != wipingType {
			continue
		}
		wiping := Wiping{Start: entry.Start, Size: entry.Size, Left: entry.Size}
		if state := m.wiping[entry.ID]; state != nil {
			wiping.Size, wiping.Left, wiping.Err = state.total, state.left, state.err
		}
		status.Wiping = append(status.Wiping, wiping)
	}
	return status
}
