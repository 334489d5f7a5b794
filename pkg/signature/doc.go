// Package signature tells whether a disk is free of data: it has nothing at its
// beginning and its end, nor in a thousand blocks between, and no known mark where
// filesystems, partition tables, RAID, volume managers, encryption or storage systems
// put theirs.
//
// Most of these write at the beginning or the end of a disk, which must be all
// zeros in any case; there the marks only serve to say in words what was found.
// Those that keep a copy elsewhere are found by it, also after the beginning and
// the end were wiped. What has no copy at a known place, such as a filesystem
// on a partition whose table was wiped, is found by the samples once a hundredth of the
// disk is in use; less than that may not be. So a disk that is taken must be wiped as a
// whole before any of it is offered.
//
// The marks are a table: what, where and which bytes. Nothing that is read is
// believed beyond that, so that there is little to parse and nothing to mislead.
package signature
