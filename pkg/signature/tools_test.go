package signature_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/signature"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What the tools themselves write is found, by its name and where it is, and so is
// what is left of it after the head and the tail were wiped.
//
// Tools that Debian has and that write to plain files. For what needs others, or
// a kernel module, there are the bytes by the sources of the table
// (TestEachMarkIsFound).
func TestRealTools(t *testing.T) {
	const ext, backup = "ext2/3/4 filesystem", "ext2/3/4 filesystem (backup)"
	for name, test := range map[string]struct {
		size    int64
		command string // The path of the disk follows.
		input   string
		want    signature.Finding
		// left is what is found after head and tail were wiped; empty: nothing.
		left signature.Finding
	}{
		"ext4":                     {300 * mib, "mkfs.ext4 -q -F -b 4096", "", signature.Finding{Kind: ext, Offset: 1080}, signature.Finding{Kind: backup, Offset: 128*mib + 56}},
		"ext4, 1 KiB blocks":       {100 * mib, "mkfs.ext4 -q -F -b 1024", "", signature.Finding{Kind: ext, Offset: 1080}, signature.Finding{Kind: backup, Offset: 24*mib + 1080}},
		"ext4, 2 KiB blocks":       {300 * mib, "mkfs.ext4 -q -F -b 2048", "", signature.Finding{Kind: ext, Offset: 1080}, signature.Finding{Kind: backup, Offset: 32*mib + 56}},
		"ext4, 64 KiB blocks":      {20 * gib, "mkfs.ext4 -q -F -b 65536 -N 1024", "", signature.Finding{Kind: ext, Offset: 1080}, signature.Finding{Kind: backup, Offset: 65528*64*kib + 56}},
		"ext2":                     {300 * mib, "mkfs.ext2 -q -F", "", signature.Finding{Kind: ext, Offset: 1080}, signature.Finding{Kind: backup, Offset: 24*mib + 1080}},
		"ext4 on an odd size":      {300*mib + 7*512, "mkfs.ext4 -q -F -b 4096", "", signature.Finding{Kind: ext, Offset: 1080}, signature.Finding{Kind: backup, Offset: 128*mib + 56}},
		"XFS":                      {400 * mib, "mkfs.xfs -q", "", signature.Finding{Kind: "XFS filesystem"}, signature.Finding{Kind: "XFS filesystem", Offset: 100 * mib}},
		"XFS of 2 TiB":             {2*tib + 3*512, "mkfs.xfs -q", "", signature.Finding{Kind: "XFS filesystem"}, signature.Finding{Kind: "XFS filesystem", Offset: 512 * gib}},
		"XFS of 5 TiB":             {5 * tib, "mkfs.xfs -q", "", signature.Finding{Kind: "XFS filesystem"}, signature.Finding{Kind: "XFS filesystem", Offset: 1*tib - 4096}},
		"btrfs":                    {200 * mib, "mkfs.btrfs -q", "", signature.Finding{Kind: "btrfs filesystem", Offset: 64*kib + 64}, signature.Finding{Kind: "btrfs filesystem", Offset: 64*mib + 64}},
		"FAT16":                    {100 * mib, "mkfs.vfat -F 16", "", signature.Finding{Kind: "FAT filesystem", Offset: 0x36}, signature.Finding{}},
		"FAT32":                    {100 * mib, "mkfs.vfat -F 32", "", signature.Finding{Kind: "FAT filesystem", Offset: 6*512 + 0x52}, signature.Finding{}},
		"FAT32, blocks of 4 KiB":   {1 * gib, "mkfs.vfat -F 32 -S 4096", "", signature.Finding{Kind: "FAT filesystem", Offset: 6*4096 + 0x52}, signature.Finding{}},
		"swap":                     {100 * mib, "mkswap", "", signature.Finding{Kind: "swap space", Offset: 4086}, signature.Finding{}},
		"swap, pages of 64 KiB":    {100 * mib, "mkswap -p 65536", "", signature.Finding{Kind: "swap space", Offset: 65526}, signature.Finding{}},
		"GPT":                      {100 * mib, "sfdisk -q", "label: gpt\n,50M\n", signature.Finding{Kind: "GPT partition table", Offset: 512}, signature.Finding{}},
		"GPT, odd size":            {100*mib + 3*512, "sfdisk -q", "label: gpt\n,50M\n", signature.Finding{Kind: "GPT partition table (backup)", Offset: 100*mib + 2*512}, signature.Finding{}},
		"MBR":                      {100 * mib, "sfdisk -q", "label: dos\n,50M\n", signature.Finding{Kind: "MBR partition table or boot sector", Offset: 510}, signature.Finding{}},
		"Sun partition table":      {100 * mib, "sfdisk -q", "label: sun\n,50M\n", signature.Finding{Kind: "Sun partition table", Offset: 508}, signature.Finding{}},
		"SGI partition table":      {100 * mib, "sfdisk -q", "label: sgi\n,50M\n", signature.Finding{Kind: "SGI partition table"}, signature.Finding{}},
		"LUKS1":                    {100 * mib, "cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 --key-file=-", "key", signature.Finding{Kind: "LUKS encryption"}, signature.Finding{}},
		"LUKS2":                    {100 * mib, "cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file=-", "key", signature.Finding{Kind: "LUKS encryption"}, signature.Finding{}},
		"LUKS2, its second header": {100 * mib, "cryptsetup luksFormat -q --type luks2 --luks2-metadata-size 4m --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file=-", "key", signature.Finding{Kind: "LUKS encryption (second header)", Offset: 4 * mib}, signature.Finding{}},
	} {
		t.Run(name, func(t *testing.T) {
			disk := newFile(t, test.size)
			runTool(t, append(strings.Fields(test.command), disk), test.input)
			if found := findIn(t, disk); !slices.Contains(found, test.want) {
				t.Errorf("found %v, want %v", found, test.want)
			}
			wipe(t, disk, 0, 16*mib)
			wipe(t, disk, test.size-16*mib, 16*mib)
			found := findIn(t, disk)
			if test.left == (signature.Finding{}) && len(found) != 0 || test.left != (signature.Finding{}) && !slices.Contains(found, test.left) {
				t.Errorf("found %v after the ends were wiped, want %v", found, test.left)
			}
		})
	}
}

// Tools restore a table from its backup, and the other way round: a disk with only
// one of them is not free.
func TestEitherCopyOfAPartitionTable(t *testing.T) {
	for name, test := range map[string]struct {
		wiped int64
		block uint32
		want  signature.Finding
	}{
		"head wiped":                  {0, 512, signature.Finding{Kind: "GPT partition table (backup)", Offset: 100*mib - 512}},
		"tail wiped":                  {84 * mib, 512, signature.Finding{Kind: "GPT partition table", Offset: 512}},
		"head wiped, blocks of 4 KiB": {0, 4096, signature.Finding{Kind: "GPT partition table (backup)", Offset: 100*mib - 4096}},
		"tail wiped, blocks of 4 KiB": {84 * mib, 4096, signature.Finding{Kind: "GPT partition table", Offset: 4096}},
	} {
		t.Run(name, func(t *testing.T) {
			disk := rig.NewDiskWithBlockSize(t, 100*mib, test.block)
			runTool(t, []string{"sfdisk", "-q", "--no-reread", "--no-tell-kernel", disk.Path}, "label: gpt\n,50M\n")
			wipe(t, disk.Path, test.wiped, 16*mib)
			file, err := os.Open(disk.Path)
			rig.Must(t, err)
			defer file.Close()
			if found := find(t, file, 100*mib); !slices.Contains(found, test.want) {
				t.Errorf("found %v, want %v", found, test.want)
			}
		})
	}
}

// A disk of 1 TiB is looked at by reading a few MiB of it.
func TestHugeSparseDisk(t *testing.T) {
	disk := newFile(t, 1*tib)
	if found := findIn(t, disk); len(found) != 0 {
		t.Errorf("found %v", found)
	}
	rig.WriteAt(t, disk, "_BHRfS_M", 256*gib+64)
	want := signature.Finding{Kind: "btrfs filesystem", Offset: 256*gib + 64}
	if found := findIn(t, disk); !slices.Equal(found, []signature.Finding{want}) {
		t.Errorf("found %v, want %v", found, want)
	}
}

// runTool runs a tool, which hack/deps.sh installs.
func runTool(t *testing.T, command []string, input string) {
	t.Helper()
	tool := exec.Command(command[0], command[1:]...)
	tool.Stdin = strings.NewReader(input)
	if out, err := tool.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", command, err, out)
	}
}

// wipe makes a part of a file or disk read zero.
func wipe(t *testing.T, path string, offset, length int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	rig.Must(t, err)
	defer file.Close()
	rig.Must(t, unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length))
}
