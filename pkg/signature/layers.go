package signature

import "slices"

// layers are what uses a disk without a filesystem: encryption, volume managers,
// storage systems, swap. Sources as for filesystems.
var layers = []signature{
	// The page of the header ends with it (union swap_header in
	// include/linux/swap.h, for pages of 4 to 64 KiB; kernel/power/swap.c).
	{kind: "swap space", magic: "SWAPSPACE2", at: swapEnds},
	{kind: "swap space", magic: "SWAP-SPACE", at: swapEnds},
	{kind: "suspended system", magic: "S1SUSPEND", at: swapEnds},
	{kind: "suspended system", magic: "S2SUSPEND", at: swapEnds},
	{kind: "suspended system", magic: "ULSUSPEND", at: swapEnds},
	{kind: "suspended system", magic: "LINHIB0001", at: swapEnds},
	{kind: "suspended system", magic: "\xed\xc3\x02\xe9\x98\x56\xe5\x0c", at: []int64{0}},
	// LUKS2 On-Disk Format Specification: the second header follows the area of
	// the first, which has one of these sizes.
	{kind: "LUKS encryption", magic: "LUKS\xba\xbe", at: []int64{0}},
	{kind: "LUKS encryption (second header)", magic: "SKUL\xba\xbe", at: []int64{16 * kib, 32 * kib, 64 * kib, 128 * kib, 256 * kib, 512 * kib, 1 * mib, 2 * mib, 4 * mib}},
	{kind: "BitLocker encryption", magic: "-FVE-FS-", at: []int64{3}},
	{kind: "FileVault encryption", magic: "CS", at: []int64{88}},
	{kind: "dm-verity hash device", magic: "verity\x00\x00", at: []int64{0}},
	{kind: "dm-integrity device", magic: "integrt\x00", at: []int64{0}},
	// In any of the first four sectors (LABEL_SCAN_SECTORS in lib/label/label.h of LVM2).
	{kind: "LVM2 physical volume", magic: "LABELONE", at: each(0, 512, 4)},
	{kind: "LVM1 physical volume", magic: "HM", at: []int64{0}},
	{kind: "LVM snapshot", magic: "SnAp", at: []int64{0}},
	{kind: "bcache device", magic: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", at: []int64{4096 + 24}},
	// Its superblock is at sector 8, copies at 2 MiB and 1 MiB from the end.
	{kind: "bcachefs filesystem", magic: "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", at: []int64{4096 + 24, 2*mib + 24, -mib + 24}},
	{kind: "ZFS member", magic: "\x0c\xb1\xba\x00\x00\x00\x00\x00", at: zfsRoots},
	{kind: "ZFS member", magic: "\x00\x00\x00\x00\x00\xba\xb1\x0c", at: zfsRoots},
	{kind: "ZFS member", magic: "\x0c\xb1\xba\x00\x00\x00\x00\x00", at: zfsLastRoots, unit: zfsLabel},
	{kind: "ZFS member", magic: "\x00\x00\x00\x00\x00\xba\xb1\x0c", at: zfsLastRoots, unit: zfsLabel},
	{kind: "ZFS member", magic: zfsPairs, at: []int64{16 * kib, zfsLabel + 16*kib}},
	{kind: "ZFS member", magic: zfsPairs, at: []int64{-2*zfsLabel + 16*kib, -zfsLabel + 16*kib}, unit: zfsLabel},
	// bdev_label_positions in src/os/bluestore/BlueStore.cc of Ceph; older versions
	// write only the first.
	{kind: "Ceph BlueStore", magic: "bluestore block device", at: []int64{0, 1 * gib, 10 * gib, 100 * gib, 1000 * gib}},
	// In the last 4 KiB, with internal metadata (struct meta_data_on_disk_9 in
	// drbd_meta_data.h; md_on_disk_08 before). The versions 8.3, 8.4 and 9.
	{kind: "DRBD device", magic: "\x83\x74\x02\x6b", at: []int64{-4096 + 60}, unit: 4096},
	{kind: "DRBD device", magic: "\x83\x74\x02\x6c", at: []int64{-4096 + 60}, unit: 4096},
	{kind: "DRBD device", magic: "\x83\x74\x02\x6d", at: []int64{-4096 + 60}, unit: 4096},
	{kind: "DRBD proxy log", magic: "DRBDdlh*", at: []int64{0}},
	{kind: "Stratis pool member", magic: "!Stra0tis\x86\xff\x02^\x41rh", at: []int64{512 + 4, 9*512 + 4}},
	{kind: "VDO device", magic: "dmvdo001", at: []int64{0}},
	{kind: "Oracle ASM disk", magic: "ORCLDISK", at: []int64{32}},
	{kind: "UBI volume", magic: "UBI#", at: []int64{0}},
}

var swapEnds = []int64{4*kib - 10, 8*kib - 10, 16*kib - 10, 32*kib - 10, 64*kib - 10}

// A ZFS label has 256 KiB; two are at the beginning, two at the end. From 16 KiB on
// there is a list of pairs, in XDR, which begins with the version; from 128 KiB on
// root blocks, which are at most 128, in the byte order of the host
// (include/sys/vdev_impl.h and uberblock_impl.h of OpenZFS).
const (
	zfsLabel = 256 * kib
	zfsPairs = "\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
)

var (
	zfsRoots     = slices.Concat(each(128*kib, kib, 128), each(zfsLabel+128*kib, kib, 128))
	zfsLastRoots = slices.Concat(each(-zfsLabel-128*kib, kib, 128), each(-128*kib, kib, 128))
)

// arrays are members of RAID arrays.
var arrays = []signature{
	// include/uapi/linux/raid/md_p.h: 0.90 is in the byte order of the host.
	{kind: "MD RAID member (0.90)", magic: "\xfc\x4e\x2b\xa9", at: []int64{-64 * kib}, unit: 64 * kib},
	{kind: "MD RAID member (0.90)", magic: "\xa9\x2b\x4e\xfc", at: []int64{-64 * kib}, unit: 64 * kib},
	{kind: "MD RAID member (1.0)", magic: "\xfc\x4e\x2b\xa9", at: []int64{-8 * kib}, unit: 4 * kib},
	{kind: "MD RAID member (1.1)", magic: "\xfc\x4e\x2b\xa9", at: []int64{0}},
	{kind: "MD RAID member (1.2)", magic: "\xfc\x4e\x2b\xa9", at: []int64{4 * kib}},
	// SNIA Common RAID Disk Data Format: the anchor is in the last block. Some
	// firmware has it 256 blocks before (libblkid).
	{kind: "DDF RAID member", magic: "\xde\x11\xde\x11", at: []int64{-512, -257 * 512}},
	{kind: "Intel RAID member", magic: "Intel Raid ISM Cfg Sig. ", at: []int64{-2 * 512}},
	{kind: "Intel RAID member", magic: "Intel Raid ISM Cfg Sig. ", at: []int64{-2 * 4096}, unit: 4096},
	{kind: "Adaptec RAID member", magic: "\x37\xfc\x4d\x1e", at: []int64{-512}},
	{kind: "Highpoint RAID member", magic: "\xf0\x16\x78\x5a", at: []int64{4608 + 32, -11 * 512}},
	{kind: "Highpoint RAID member", magic: "\xfd\x16\x78\x5a", at: []int64{4608 + 32, -11 * 512}},
	{kind: "JMicron RAID member", magic: "JM", at: []int64{-512}},
	{kind: "LSI RAID member", magic: "$XIDE$", at: []int64{-512}},
	{kind: "NVIDIA RAID member", magic: "NVIDIA  ", at: []int64{-2 * 512}},
	{kind: "Promise RAID member", magic: "Promise Technology, Inc.", at: promiseEnds},
	{kind: "Silicon Image RAID member", magic: "\x00\x00\x00\x2f", at: []int64{-512 + 0x60}},
	{kind: "VIA RAID member", magic: "\x55\xaa", at: []int64{-512}},
}

var promiseEnds = []int64{
	-63 * 512, -255 * 512, -256 * 512, -16 * 512, -399 * 512, -591 * 512, -675 * 512, -735 * 512,
	-911 * 512, -974 * 512, -991 * 512, -951 * 512, -3087 * 512,
}
