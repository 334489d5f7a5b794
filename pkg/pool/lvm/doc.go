// Package lvm is the pool of logical volumes: of the free extents of a volume group
// (thick), or of a thin pool in it (thin), which can also make snapshots.
//
// What exists is known from LVM's own metadata alone: the tags of a logical volume say
// that it is this pool's, which volume or snapshot it is, what it was made from, how it
// is to be wiped, and whether it is whole. A logical volume without such a tag, and a
// volume group that is not the pool's, are never touched.
//
//   - A thick volume reads zero when it is handed out: free extents may have been
//     anybody's, so they are wiped before, and so are those by which it grows. Deleted,
//     it loses its name at once and is wiped in the background; only then are its
//     extents free again.
//   - A thin volume reads zero since the thin pool zeroes each chunk that it gives. What
//     is promised to all volumes of the thin pool together is bounded, and nothing more is
//     promised once the thin pool is nearly full.
//   - The device of a volume is known by the UUID that LVM gave to its mapping, which the
//     kernel tells. A volume that has its device is published without running a program.
//
// docs/adr/0014-lvm-pool.md says why.
package lvm
