// Package disk is the pool of real disks: it adopts those that are provably free
// and makes partitions of them, one for each volume.
//
// What exists is known from the disks alone. Each disk of the pool has a GUID
// partition table whose entries say everything:
//
//   - the first partition, of 1 MiB, is the claim: its type says that the disk is
//     ours, its name of which pool. The plugin claims it (O_EXCL) for as long as it
//     runs, so that no other program can take the disk over;
//   - a partition for each volume: its ID is derived from the names of pool and
//     volume, its name is that of the volume, an attribute says how it is to be
//     wiped;
//   - a partition for each space that is being wiped, with an ID of its own. It is
//     not offered before the whole of it was read back as zeros;
//   - space that nobody wiped, since the StorageClass said so (wipe: none). Only
//     volumes that say the same are made of it.
//
// All other space reads zero. The disk is known by the GUID of its table, whatever
// the kernel calls it. With the layout "whole" a volume takes all of a disk that
// the claim leaves; docs/adr/0007-disk-pool-claims.md says why the claim is there.
package disk
