package gpt

import "strings"

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
