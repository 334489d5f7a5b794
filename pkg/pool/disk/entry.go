package disk

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// unit is what partitions are aligned to, and the sizes of volumes are multiples
// of, in bytes: what all partitioning tools align to, and a multiple of the blocks
// of any disk.
const unit = 1 << 20

// The types of our partitions. They are on disks: they must never change.
var (
	volumeType  = gpt.HashGUID("rawblock volume")
	wipingType  = gpt.HashGUID("rawblock wiping")
	unwipedType = gpt.HashGUID("rawblock unwiped")
)

// claimIndex is the index of the entry that is the claim.
const claimIndex = gpt.ClaimIndex

// Where the attributes of an entry have the wipe, and the encryption: bits 48 to 63
// belong to the owner of the partition's type (UEFI 2.10, 5.3.3). Each has 8 of them.
const (
	methodShift     = 48
	encryptionShift = 56
)

// wipe is how the space of a volume is wiped, as it stands in an entry.
type wipe uint64

const (
	wipeDiscard = wipe(blockdev.WipeDiscard)
	wipeZero    = wipe(blockdev.WipeZero)
	wipeSecure  = wipe(blockdev.WipeSecure)
	wipeNone    = wipeSecure + 1
)

// wipes are the names of the wipes in a StorageClass.
var wipes = map[string]wipe{"discard": wipeDiscard, "zero": wipeZero, "secure": wipeSecure, "none": wipeNone}

// wipeKey is the only parameter.
const wipeKey = "wipe"

// parseParameters returns the wipe that the parameters of a StorageClass ask for.
func parseParameters(parameters map[string]string, otherwise wipe) (wipe, error) {
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		if key != wipeKey {
			return 0, fmt.Errorf("%w: parameter %q is unknown; a pool of disks has the parameter %s", volume.ErrInvalid, key, wipeKey)
		}
	}
	text, given := parameters[wipeKey]
	if !given {
		return otherwise, nil
	}
	return parseWipe(text)
}

func parseWipe(text string) (wipe, error) {
	if method, known := wipes[text]; known {
		return method, nil
	}
	return 0, fmt.Errorf("%w: %s %q is unknown; it is one of %s", volume.ErrInvalid, wipeKey, text,
		strings.Join(slices.Sorted(maps.Keys(wipes)), ", "))
}

func (w wipe) String() string {
	for name, method := range wipes {
		if method == w {
			return name
		}
	}
	return fmt.Sprintf("unknown (%d)", uint64(w))
}

// method is the wipe of an entry's space. What a later version may have written
// is done by the method that always works.
func (w wipe) method() blockdev.WipeMethod {
	switch w {
	case wipeDiscard, wipeSecure:
		return blockdev.WipeMethod(w) //nolint:gosec // One of a few small numbers.
	default:
		return blockdev.WipeZero
	}
}

func wipeOf(entry *gpt.Entry) wipe { return wipe(entry.Attributes >> methodShift & 0xff) }

// encryptions are what stands in an entry for the encryption of its volume.
var encryptions = map[uint64]volume.Encryption{0: volume.Plain, 1: volume.LUKS2}

// encryptionOf returns the encryption of an entry. What a later version may have
// written is none that anybody knows, and not plain.
func encryptionOf(entry *gpt.Entry) volume.Encryption {
	code := entry.Attributes >> encryptionShift
	if encryption, known := encryptions[code]; known {
		return encryption
	}
	return volume.Encryption(fmt.Sprintf("unknown (%d)", code))
}

// withEncryption returns an entry with an encryption, which is one of encryptions.
func withEncryption(entry gpt.Entry, encryption volume.Encryption) gpt.Entry {
	for code, known := range encryptions {
		if known == encryption {
			entry.Attributes |= code << encryptionShift
		}
	}
	return entry
}

// infoOf describes the volume of an entry.
func infoOf(name string, entry *gpt.Entry) volume.Info {
	return volume.Info{Name: name, Size: entry.Size, Encryption: encryptionOf(entry)}
}

func newClaim(pool string) gpt.Entry {
	claim := gpt.NewClaim(pool)
	claim.Start, claim.Size = unit, unit
	return claim
}

// volumeID returns the ID of the partition of a volume.
func volumeID(pool, name string) gpt.GUID { return gpt.HashGUID(pool + "/" + name) }

func newVolume(pool, name string, method wipe, place space) gpt.Entry {
	return gpt.Entry{
		Type: volumeType, ID: volumeID(pool, name), Start: place.start, Size: place.size(),
		Attributes: uint64(method) << methodShift, Name: volume.Label(name),
	}
}

// released returns the entry of the space of a volume that is deleted. Its ID is
// new: the volume no longer exists, and another one of its name may be made.
func released(entry gpt.Entry) gpt.Entry {
	entry.Type, entry.ID, entry.Name = wipingType, gpt.NewGUID(), "rawblock wiping"
	if wipeOf(&entry) == wipeNone {
		entry.Type, entry.Name = unwipedType, "rawblock unwiped"
	}
	return entry
}

// nameOf returns the name of the volume that an entry is. An entry that somebody
// has renamed is not ok.
func nameOf(pool string, entry *gpt.Entry) (name string, ok bool) {
	name = volume.NameOfLabel(entry.Name)
	return name, entry.Type == volumeType && volumeID(pool, name) == entry.ID
}

// hasDevice reports whether the kernel is to know the partition of an entry.
func hasDevice(entry *gpt.Entry) bool { return entry.Used() && entry.Type != unwipedType }
