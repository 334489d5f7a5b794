package luks

import (
	"fmt"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// prefix begins the names of our mappings, and the subsystem in our headers.
const prefix = "rawblock:"

// markPrefix begins the block that is in the place of the header while that is being
// made. POOL/NAME follows.
const markPrefix = "rawblock-csi: unfinished LUKS2 header of "

// owner is the volume that a header belongs to.
type owner struct {
	pool, name string
	// copied says that it was made from another volume of the pool, and so begins
	// with the header of that one.
	copied bool
}

func ownerOf(id volume.ID, source volume.Source) owner {
	return owner{id.Pool, id.Name, source != volume.Source{}}
}

// String names the volume.
func (o owner) String() string { return o.pool + "/" + o.name }

// mapping is the name of its mapping. Neither part can have a colon, and all of it is
// written as it is, without escapes (DEV_NAME_WHITELIST in LVM2's libdm).
func (o owner) mapping() string { return prefix + o.pool + ":" + o.name }

// label and subsystem are what its header says, each less than 48 bytes long.
func (o owner) label() string     { return volume.Label(o.name) }
func (o owner) subsystem() string { return prefix + o.pool }

// mark is the text of its unfinished header.
func (o owner) mark() string { return markPrefix + o.String() }

// ownsMark reports whether what follows markPrefix is of this volume.
func (o owner) ownsMark(text string) bool {
	return text == o.String() || o.copied && strings.HasPrefix(text, o.pool+"/")
}

// check returns an error unless a header is that of the volume. A copy has the header
// of what it was made from, whose name nobody may know any more: of that one, only
// the pool is known.
func (o owner) check(h header) error {
	if h.subsystem == o.subsystem() && (h.label == o.label() || o.copied) {
		return nil
	}
	return fmt.Errorf("%w: the LUKS2 header on the device says that it is of %q in %q, and not of volume %s (%q in %q): somebody has put another disk or file in its place; nothing was changed",
		volume.ErrMismatch, h.label, h.subsystem, o, o.label(), o.subsystem())
}
