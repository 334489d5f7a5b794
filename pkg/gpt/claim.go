package gpt

import (
	"errors"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// ClaimType is the type of the claim, which is the first entry of the table of a disk of
// a pool: its name says which. They are on disks: they must never change.
var ClaimType = HashGUID("rawblock claim")

// claimPrefix and the name of the pool are the name of the claim.
const claimPrefix = "rawblock:"

// ClaimIndex is the index of the entry that is the claim.
const ClaimIndex = 0

// NewClaim returns the claim of a pool, without a place on the disk.
func NewClaim(pool string) Entry {
	return Entry{Type: ClaimType, ID: NewGUID(), Name: claimPrefix + pool}
}

// Claimant returns the pool whose claim the table has.
func (t *Table) Claimant() (pool string, claimed bool) {
	claim := &t.Entries[ClaimIndex]
	if claim.Type != ClaimType {
		return "", false
	}
	return strings.CutPrefix(claim.Name, claimPrefix)
}

// ClaimantOf returns the pool whose claim is on a disk. Errors: those of the disk; ErrDamaged;
// ErrUnread.
func ClaimantOf(disk *linux.Raw) (pool string, claimed bool, err error) {
	size, err := linux.BlockSize(disk)
	if err != nil {
		return "", false, err
	}
	found, err := Read(disk, size, disk.BlockSize())
	if errors.Is(err, ErrNone) {
		return "", false, nil
	}
	pool, claimed = found.Table.Claimant()
	return pool, claimed, err
}
