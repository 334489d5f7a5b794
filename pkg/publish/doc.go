// Package publish puts a device at a target path and takes it away again, and
// knows what is published where.
//
// A published volume is a bind mount of the host's device node on a file at the
// target. The mount is the record that it is published; whether there is one is
// asked of the target itself, never of the mount table, so that no call costs
// more on a node with more mounts. What the mount cannot say (which disk was
// staged, the access mode, the arguments) is in a directory below /run, a
// directory for each volume, as symbolic links whose text is the record: made by
// one atomic call, read by one, and shown by `ls -l`. Such a record never counts
// by itself: a publication is real while its target is mounted, a staged device
// while it has the same number and sequence number in the same boot
// (docs/adr/0001-records.md). Where a record is missing, the kernel is asked
// (docs/adr/0020-lost-records.md).
//
// Rules: a volume is a name here; which device it is has been decided and
// verified before. The caller sees to it that calls for one volume or one target
// do not overlap.
package publish
