package volume

import (
	"fmt"
	"time"
)

// Spec says what volume a pool is to make.
type Spec struct {
	// Name is the name within the pool, by NameOf.
	Name string
	// Size is the size that the volume may have.
	Size Range
	// Parameters are those of the StorageClass that are the pool's.
	Parameters map[string]string
	// Source is what the volume begins as; the zero value: all zeros.
	Source Source
	// Encryption is recorded with the volume. A pool does not encrypt: the sizes are
	// those of its device, of which the encryption takes its part (Overhead). A source
	// must have the same.
	Encryption Encryption
}

// Source names what a volume is a copy of, in the same pool. At most one of the
// names is set.
type Source struct {
	// Snapshot is the name of a snapshot.
	Snapshot string
	// Volume is the name of a volume.
	Volume string
}

// Info is what is known of a volume.
type Info struct {
	// Name is the name within the pool.
	Name string
	// Size is the size of its device in bytes, exactly.
	Size uint64
	// Source is what it was made from.
	Source Source
	// Encryption is that which it was made with.
	Encryption Encryption
}

// Snapshot is what is known of a snapshot. It can be used as soon as it exists.
type Snapshot struct {
	// Name is the name within the pool.
	Name string
	// Volume is the name of the volume that it shows.
	Volume string
	// Size is the size of the volume at that time in bytes.
	Size uint64
	// Created is when it was made.
	Created time.Time
	// Encryption is that of the volume.
	Encryption Encryption
}

// Capacity is what a pool has to give.
type Capacity struct {
	// Available is the sum of the sizes of what can be made now, in bytes.
	Available uint64
	// MaxVolume and MinVolume are the sizes of the largest and the smallest
	// volume that can be made now, in bytes.
	MaxVolume, MinVolume uint64
}

// Range is the range of sizes in bytes that a caller accepts.
type Range struct {
	// Required is the least size; 0: any.
	Required uint64
	// Limit is the largest size; 0: any.
	Limit uint64
}

// Contains reports whether a size is in the range.
func (r Range) Contains(size uint64) bool {
	return size >= r.Required && (r.Limit == 0 || size <= r.Limit)
}

// Choose returns the least size in the range that is at least minimum and a
// multiple of unit. Where the range requires nothing it is preferred, or what
// the limit allows of it. Errors: ErrOutOfRange.
func (r Range) Choose(minimum, preferred, unit uint64) (uint64, error) {
	want := r.Required
	if want == 0 {
		want = preferred
		if r.Limit != 0 {
			want = min(want, r.Limit/unit*unit)
		}
	}
	want = max(want, minimum)
	size := want
	if rest := want % unit; rest != 0 {
		size += unit - rest
	}
	if size < want || !r.Contains(size) {
		return 0, fmt.Errorf("%w: no size from %d to %d bytes is at least %d and a multiple of %d",
			ErrOutOfRange, r.Required, r.Limit, minimum, unit)
	}
	return size, nil
}
