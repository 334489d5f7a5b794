package devcgroup

import (
	"fmt"
	"strings"
)

// Access is what may be done with a device: a set.
type Access uint8

// The bits of an Access are those of BPF_DEVCG_ACC_* in linux/bpf.h.
const (
	// Mknod: a node may be made for it.
	Mknod Access = 1 << iota
	// Read: it may be opened for reading.
	Read
	// Write: it may be opened for writing.
	Write
)

// letters are those of devices.allow, in its order
// (Documentation/admin-guide/cgroup-v1/devices.rst in the kernel).
var letters = []struct {
	access Access
	letter string
}{{Read, "r"}, {Write, "w"}, {Mknod, "m"}}

// String returns the access as devices.allow has it, such as "rw".
func (a Access) String() string {
	var text strings.Builder
	for _, one := range letters {
		if a&one.access != 0 {
			text.WriteString(one.letter)
		}
	}
	return text.String()
}

// ParseAccess reads what String writes, in any order.
func ParseAccess(text string) (Access, error) {
	var access Access
	for _, letter := range text {
		known := false
		for _, one := range letters {
			if one.letter == string(letter) {
				access, known = access|one.access, true
			}
		}
		if !known {
			return 0, fmt.Errorf("access %q: expected letters of rwm", text)
		}
	}
	return access, nil
}
