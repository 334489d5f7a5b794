package signature

import "slices"

// Sources: the kernel's header of the filesystem, else libblkid/src of util-linux,
// which has most of these in superblocks/ and partitions/. Copies at other places
// than the beginning name their own.

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

const xfs, xfsMagic = "XFS filesystem", "XFSB" // fs/xfs/libxfs/xfs_format.h

var partitionTables = []signature{
	// UEFI 2.10, 5.3.2: in the second and in the last block.
	{kind: "GPT partition table", magic: "EFI PART", at: []int64{512, 4096}},
	{kind: "GPT partition table (backup)", magic: "EFI PART", at: []int64{-512}},
	{kind: "GPT partition table (backup)", magic: "EFI PART", at: []int64{-4096}, unit: 4096},
	// The boot sectors of FAT and NTFS have it, too (UEFI 2.10, 5.2.1).
	{kind: "MBR partition table or boot sector", magic: "\x55\xaa", at: []int64{510}},
	{kind: "Apple partition table", magic: "ER", at: []int64{0}},
	{kind: "Apple partition table", magic: "PM", at: []int64{512, 2048, 4096}},
	{kind: "BSD partition table", magic: "\x57\x45\x56\x82", at: []int64{64, 128, 512}},
	{kind: "Sun partition table", magic: "\xda\xbe", at: []int64{508}},
	{kind: "SGI partition table", magic: "\x0b\xe5\xa9\x41", at: []int64{0}},
	{kind: "AIX physical volume", magic: "\xc9\xc2\xd4\xc1", at: []int64{0}},
}

var filesystems = []signature{
	// At 1 KiB, its magic at 0x38 (fs/ext4/ext4.h).
	{kind: "ext2/3/4 filesystem", magic: "\x53\xef", at: []int64{kib + 0x38}},
	{kind: "ext2/3/4 filesystem (backup)", magic: "\x53\xef", at: plus(extCopies(1*kib), []int64{kib + 0x38})},
	{kind: "ext2/3/4 filesystem (backup)", magic: "\x53\xef", at: plus(slices.Concat(
		extCopies(2*kib), extCopies(4*kib), extCopies(8*kib), extCopies(16*kib), extCopies(32*kib), extCopies(64*kib)), []int64{0x38})},
	{kind: xfs, magic: xfsMagic, at: []int64{0}}, // The copies: xfsGroup.
	{kind: "XFS log", magic: "\xfe\xed\xba\xbe", at: []int64{0}},
	// BTRFS_SUPER_MIRROR_SHIFT in fs/btrfs/disk-io.h: at 64 KiB, 64 MiB, 256 GiB.
	{kind: "btrfs filesystem", magic: "_BHRfS_M", at: plus([]int64{64 * kib, 64 * mib, 256 * gib}, []int64{0x40})},
	// Two at blocks of 4 KiB, 1 KiB in (include/linux/f2fs_fs.h).
	{kind: "F2FS filesystem", magic: "\x10\x20\xf5\xf2", at: []int64{kib, 5 * kib}},
	// NILFS_SB2_OFFSET_BYTES in include/uapi/linux/nilfs2_ondisk.h: the last whole 4 KiB.
	{kind: "NILFS2 filesystem", magic: "\x34\x34", at: []int64{kib + 6}},
	{kind: "NILFS2 filesystem (backup)", magic: "\x34\x34", at: []int64{-4096 + 6}, unit: 4096},
	{kind: "NILFS2 filesystem (backup)", magic: "\x34\x34", at: []int64{-4096 + 6}},
	{kind: "ReiserFS filesystem", magic: "ReIsEr", at: []int64{8*kib + 0x14, 8*kib + 0x34, 64*kib + 0x34}},
	{kind: "Reiser4 filesystem", magic: "ReIsEr4", at: []int64{64 * kib}},
	// SUPER1_OFF and SUPER2_OFF in fs/jfs/jfs_filsys.h.
	{kind: "JFS filesystem", magic: "JFS1", at: []int64{32 * kib, 60 * kib}},
	// Microsoft FAT specification 1.03: the copy of FAT32 is in sector 6.
	{kind: "FAT filesystem", magic: "FAT", at: []int64{0x36}},
	{kind: "FAT filesystem", magic: "FAT32   ", at: []int64{0x52, 6*512 + 0x52, 6*4096 + 0x52}},
	// Microsoft exFAT specification, 2: the copy begins at sector 12.
	{kind: "exFAT filesystem", magic: "EXFAT   ", at: []int64{3, 12*512 + 3, 12*4096 + 3}},
	// The copy is in the sector behind the filesystem (fs/ntfs3/super.c).
	{kind: "NTFS filesystem", magic: "NTFS    ", at: []int64{3}},
	{kind: "NTFS filesystem (backup)", magic: "NTFS    ", at: []int64{-512 + 3}},
	{kind: "NTFS filesystem (backup)", magic: "NTFS    ", at: []int64{-4096 + 3}, unit: 4096},
	{kind: "ReFS filesystem", magic: "ReFS\x00", at: []int64{3}},
	{kind: "ReFS filesystem (backup)", magic: "ReFS\x00", at: []int64{-512 + 3}},
	// ECMA-119, 8.4 and ECMA-167, 2/9.1: descriptors of 2 KiB, or one each block.
	{kind: "ISO 9660 filesystem", magic: "CD001", at: each(32*kib+1, 2*kib, 4)},
	{kind: "UDF filesystem", magic: "BEA01", at: each(32*kib+1, 2*kib, 8)},
	{kind: "UDF filesystem", magic: "NSR0", at: each(32*kib+1, 2*kib, 8)},
	// Apple TN1150: the copy is 1 KiB from the end.
	{kind: "HFS filesystem", magic: "BD", at: []int64{kib}},
	{kind: "HFS+ filesystem", magic: "H+", at: []int64{kib, -kib}},
	{kind: "HFS+ filesystem", magic: "HX", at: []int64{kib, -kib}},
	{kind: "APFS container", magic: "NXSB", at: []int64{32}}, // Apple File System Reference, nx_superblock_t
	{kind: "squashfs filesystem", magic: "hsqs", at: []int64{0}},
	{kind: "squashfs filesystem", magic: "sqsh", at: []int64{0}},
	{kind: "cramfs filesystem", magic: "\x45\x3d\xcd\x28", at: []int64{0, 512}},
	{kind: "romfs filesystem", magic: "-rom1fs-", at: []int64{0}},
	{kind: "EROFS filesystem", magic: "\xe2\xe1\xf5\xe0", at: []int64{kib}},
	{kind: "GFS or GFS2 filesystem", magic: "\x01\x16\x19\x70", at: []int64{64 * kib}},
	// The third block; copies as in ocfs2_backup_super_blkno, fs/ocfs2/ocfs2_fs.h.
	{kind: "OCFS2 filesystem", magic: "OCFSV2", at: []int64{1 * kib, 2 * kib, 4 * kib, 8 * kib, 1 * gib, 4 * gib, 16 * gib, 64 * gib, 256 * gib, 1 * tib}},
	{kind: "VMFS member", magic: "\x0d\xd0\x01\xc0", at: []int64{1 * mib}},
	{kind: "VMFS filesystem", magic: "\x5e\xf1\xab\x2f", at: []int64{2 * mib}},
	{kind: "Minix filesystem", magic: "\x7f\x13", at: []int64{kib + 0x10}},
	{kind: "Minix filesystem", magic: "\x8f\x13", at: []int64{kib + 0x10}},
	{kind: "Minix filesystem", magic: "\x68\x24", at: []int64{kib + 0x10}},
	{kind: "Minix filesystem", magic: "\x78\x24", at: []int64{kib + 0x10}},
	{kind: "Minix filesystem", magic: "\x5a\x4d", at: []int64{kib + 0x18}},
	{kind: "UFS filesystem", magic: "\x54\x19\x01\x00", at: plus([]int64{0, 8 * kib, 64 * kib, 256 * kib}, []int64{0x55c})},
	{kind: "UFS2 filesystem", magic: "\x19\x01\x54\x19", at: plus([]int64{0, 8 * kib, 64 * kib, 256 * kib}, []int64{0x55c})},
	{kind: "VxFS filesystem", magic: "\xf5\xfc\x01\xa5", at: []int64{kib}},
	{kind: "zonefs filesystem", magic: "SFOZ", at: []int64{0}},
}

// extCopies returns where the first copies of the superblock of an ext filesystem
// with blocks of the given size in bytes are, but for the block that is skipped
// where blocks have 1 KiB: in block group 1 and those with powers of 3, 5 and 7
// (ext4_bg_has_super in fs/ext4/balloc.c). The bitmap of a group is one block,
// and mke2fs gives no group more than 65528 blocks (EXT2_MAX_BLOCKS_PER_GROUP in
// e2fsprogs' ext2_fs.h).
func extCopies(blockSize int64) []int64 {
	group := blockSize * min(blockSize*8, 65528)
	return []int64{1 * group, 3 * group, 5 * group, 7 * group, 9 * group}
}
