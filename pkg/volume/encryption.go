package volume

import (
	"fmt"
	"regexp"
)

// Encryption is how a volume is encrypted by the driver, below the device that a pod
// gets. A pool keeps it where no pod can write, and makes copies with it.
type Encryption string

// The kinds of encryption. Their texts are parameters of StorageClasses, and are
// recorded on media: they must never change.
const (
	// Plain is no encryption by the driver. What a pod itself does is its own affair.
	Plain Encryption = ""
	// LUKS2 is dm-crypt with a LUKS2 header at the beginning of the volume.
	LUKS2 Encryption = "luks2"
)

// luks2Overhead is the offset of the data behind a LUKS2 header: what cryptsetup
// makes it by default (cryptsetup-luksFormat(8), --offset), said to it all the same.
const luks2Overhead = 16 << 20

// ParseEncryption reads an encryption that is asked for. Errors: ErrInvalid.
func ParseEncryption(text string) (Encryption, error) {
	if Encryption(text) != LUKS2 {
		return Plain, fmt.Errorf("%w: encryption %q is unknown; it is %s, or is left out", ErrInvalid, text, LUKS2)
	}
	return LUKS2, nil
}

// Known reports whether it is one of those above. What is recorded on a medium may be
// of a later version: that is never plain.
func (e Encryption) Known() bool { return e == Plain || e == LUKS2 }

// Overhead returns how many bytes of a volume the encryption takes for itself. The
// rest is what a pod gets.
func (e Encryption) Overhead() uint64 {
	if e == LUKS2 {
		return luks2Overhead
	}
	return 0
}

// KeyName is the form of the name of an encryption key in a node's directory of keys:
// that of a key of a Kubernetes Secret, which does not begin with a dot.
var KeyName = regexp.MustCompile(`^[A-Za-z0-9][-._A-Za-z0-9]{0,200}$`)
