package identity

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// size is large enough for all that is put on a disk here; mkfs.xfs asks for most.
const size = 320 * rig.MiB

// somebodys are disks that belong to somebody, made so by the tools themselves.
//
// No pool takes such a disk in, nor writes to it, and says why. As a volume that an
// administrator names, it is refused while the host uses it (docs/adr/0003): what
// lies on it is the administrator's business, and pods do have LVM and filesystems
// on their volumes.
var somebodys = map[string]struct {
	prepare func(t *testing.T, d *machine.Plugged)
	// state and says are what the pool says.
	state, says string
	// used is what the refusal of a named volume says; empty: it is not refused.
	used string
}{
	"GPT":                   {partition("gpt"), "occupied", "partition table of others", ""},
	"MBR":                   {partition("dos"), "occupied", "MBR partition table", ""},
	"LVM, no group":         {commands("pvcreate -q %s"), "occupied", "LVM2 physical volume", ""},
	"LVM, group":            {group, "occupied", "LVM2 physical volume", ""},
	"LVM, active":           {activeGroup, "busy", "(LVM: identity-lv)", "(LVM: identity-lv)"},
	"MD 0.90":               {array("/dev/md1", "0.90", false), "occupied", "MD RAID member (0.90)", ""},
	"MD 1.0":                {array("/dev/md2", "1.0", false), "occupied", "MD RAID member (1.0)", ""},
	"MD 1.1":                {array("/dev/md3", "1.1", false), "occupied", "MD RAID member (1.1)", ""},
	"MD 1.2":                {array("/dev/md4", "1.2", false), "occupied", "MD RAID member (1.2)", ""},
	"MD 1.0, active":        {array("/dev/md5", "1.0", true), "busy", "held by md", "held by md"},
	"MD 1.2, active":        {array("/dev/md6", "1.2", true), "busy", "held by md", "held by md"},
	"LUKS1":                 {luks("luks1", false), "occupied", "LUKS encryption", ""},
	"LUKS2":                 {luks("luks2", false), "occupied", "LUKS encryption", ""},
	"LUKS2, open":           {luks("luks2", true), "busy", "(dm-crypt: identity-luks)", "(dm-crypt: identity-luks)"},
	"dm-linear":             {mapped, "busy", "(identity-linear)", "(identity-linear)"},
	"ZFS, by its bytes":     {zfs, "occupied", "ZFS member", ""},
	"Ceph, by its bytes":    {bytes("bluestore block device\n3c7b1b8e", 0), "occupied", "Ceph BlueStore", ""},
	"ext4":                  {commands("mkfs.ext4 -q %s"), "occupied", "ext2/3/4 filesystem", ""},
	"XFS":                   {commands("mkfs.xfs -q %s"), "occupied", "XFS filesystem", ""},
	"btrfs":                 {commands("mkfs.btrfs -q %s"), "occupied", "btrfs filesystem", ""},
	"FAT":                   {commands("mkfs.vfat %s"), "occupied", "FAT filesystem", ""},
	"swap":                  {commands("mkswap %s"), "occupied", "swap space", ""},
	"ext4, mounted":         {mounted("mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 %s", "ext4"), "busy", "mounted at", "mounted at"},
	"XFS, mounted":          {mounted("mkfs.xfs -q %s", "xfs"), "busy", "mounted at", "mounted at"},
	"btrfs, mounted":        {mounted("mkfs.btrfs -q %s", "btrfs"), "busy", "part of the btrfs filesystem", "part of the btrfs filesystem"},
	"swap, on":              {swap, "busy", "used as swap", "used as swap"},
	"a partition, mounted":  {mountedPartition, "occupied", "partition table of others", "mounted at"},
	"a byte at the end":     {bytes("x", size-1), "occupied", fmt.Sprint("unknown data at ", size-1), ""},
	"data in the middle":    {middle, "occupied", "unknown data at", ""},
	"ESP and root":          {system, "occupied", "partition table of others", ""},
	"copy of the root disk": {rootCopy, "occupied", "ext2/3/4 filesystem", ""},
}

func TestUdevSomebodysDisks(t *testing.T) {
	plugin := rig.NewPlugin(t, nil)
	for name, test := range somebodys {
		t.Run(name, func(t *testing.T) {
			d := machine.Add(t, machine.Disk{Size: size})
			test.prepare(t, d)
			settle(t)
			before := settled(t, d.Name)
			pool := openPool(t, disk.Selector{Paths: []string{d.Path}})
			wantRefused(t, pool, d.Name, test.state, test.says)
			wantStaged(t, plugin.NewVolume(t, "vol", d.Path), test.used)
			if after := changes(t, d.Name); after != before {
				t.Errorf("the disk was written to: %d times", after-before)
			}
		})
	}
}

// wantStaged stages a volume that an administrator named, and checks the refusal.
func wantStaged(t *testing.T, v *rig.Volume, used string) {
	t.Helper()
	err := v.Stage(rig.Context(t))
	t.Logf("named by an administrator: %v", err)
	if used == "" {
		rig.Must(t, err)
		rig.Must(t, v.Unstage(rig.Context(t)))
		return
	}
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), used) {
		t.Errorf("want %v with the words %q", codes.FailedPrecondition, used)
	}
}

// The disk that the machine runs from is not adopted, whatever the selector says.
func TestSystemDisk(t *testing.T) {
	for name, match := range map[string]disk.Selector{
		"by transport": {Transport: "virtio"}, "by path": {Paths: []string{"/dev/vda"}}, "all": {MinSize: 1},
	} {
		t.Run(name, func(t *testing.T) {
			pool := openPool(t, match)
			wantRefused(t, pool, "vda", "busy", "mounted at /;")
			if disks := pool.Status().Disks; len(disks) > 0 {
				t.Errorf("adopted: %+v", disks)
			}
		})
	}
	wantStaged(t, rig.NewPlugin(t, nil).NewVolume(t, "vol", "/dev/vda"), "mounted at /;")
}

// A disk that refuses writes is in no pool, and is published for reading only.
func TestReadOnlyDisk(t *testing.T) {
	for _, bus := range []machine.Bus{machine.SCSI, machine.Virtio} { // QEMU has no such NVMe disk.
		t.Run(string(bus), func(t *testing.T) {
			d := machine.Add(t, machine.Disk{Bus: bus, Size: 64 * rig.MiB, ReadOnly: true})
			wantRefused(t, openPool(t, disk.Selector{Paths: []string{d.Path}}), d.Name, "unfit", "it is read-only")
			v, ctx := rig.NewPlugin(t, nil).NewVolume(t, "vol", d.Path), rig.Context(t)
			target := v.Target(t, "pod")
			rig.Must(t, v.Stage(ctx))
			err := v.Publish(ctx, target)
			t.Log(err)
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "read-only") {
				t.Errorf("published for writing: %v", err)
			}
			rig.Must(t, v.PublishReadOnly(ctx, target))
			rig.ReadAt(t, target, 512, 0)
			rig.Must(t, v.Unpublish(ctx, target))
			rig.Must(t, v.Unstage(ctx))
		})
	}
}

// commands runs programs on the disk, whose path is put into them.
func commands(lines ...string) func(*testing.T, *machine.Plugged) {
	return func(t *testing.T, d *machine.Plugged) {
		t.Helper()
		for _, line := range lines {
			run(t, strings.Fields(strings.ReplaceAll(line, "%s", d.Path))...)
		}
	}
}

// bytes writes bytes, for what there is no tool here.
func bytes(data string, offset int64) func(*testing.T, *machine.Plugged) {
	return func(t *testing.T, d *machine.Plugged) {
		t.Helper()
		rig.WriteAt(t, d.Path, data, offset)
	}
}

// partition makes a table with a partition, which the kernel knows.
func partition(label string) func(*testing.T, *machine.Plugged) {
	return func(t *testing.T, d *machine.Plugged) {
		t.Helper()
		sfdisk(t, d, "label: "+label+"\nstart=1MiB, size=64MiB\n")
	}
}

func sfdisk(t *testing.T, d *machine.Plugged, script string) {
	t.Helper()
	settle(t)
	command := exec.CommandContext(t.Context(), "sfdisk", "-q", d.Path)
	command.Stdin = strings.NewReader(script)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, output)
	}
	rig.Eventually(t, func() error { _, err := os.Stat(d.Path + "1"); return err })
}

func group(t *testing.T, d *machine.Plugged) {
	t.Helper()
	run(t, "vgcreate", "-q", "identity", d.Path)
	undo(t, "vgremove", "-q", "-f", "identity")
}

func activeGroup(t *testing.T, d *machine.Plugged) {
	t.Helper()
	group(t, d)
	run(t, "lvcreate", "-q", "-y", "-n", "lv", "-L", "16M", "identity")
}

// array makes the disk a member of a mirror whose other half is missing. Each has a number
// of its own: the node of one may go after that of the next has come.
func array(node, metadata string, active bool) func(*testing.T, *machine.Plugged) {
	return func(t *testing.T, d *machine.Plugged) {
		t.Helper()
		run(t, "mdadm", "--create", node, "--run", "--level=1", "--raid-devices=2", "--metadata="+metadata, d.Path, "missing")
		if active {
			undo(t, "mdadm", "--stop", node)
			return
		}
		settle(t)
		run(t, "mdadm", "--stop", node)
	}
}

func luks(kind string, open bool) func(*testing.T, *machine.Plugged) {
	return func(t *testing.T, d *machine.Plugged) {
		t.Helper()
		key := t.TempDir() + "/key"
		rig.Must(t, os.WriteFile(key, []byte("a key"), 0o600))
		args := []string{"cryptsetup", "luksFormat", "-q", "--type=" + kind, "--pbkdf-force-iterations=1000", "--key-file=" + key, d.Path}
		if kind == "luks2" {
			args = append(args, "--pbkdf=pbkdf2")
		}
		run(t, args...)
		if open {
			run(t, "cryptsetup", "open", "--key-file="+key, d.Path, "identity-luks")
			undo(t, "cryptsetup", "close", "identity-luks")
		}
	}
}

func mapped(t *testing.T, d *machine.Plugged) {
	t.Helper()
	run(t, "dmsetup", "create", "identity-linear", "--table", "0 2048 linear "+d.Path+" 4096")
	undo(t, "dmsetup", "remove", "identity-linear")
}

// zfs writes what a label has: the list of pairs, and a root block.
func zfs(t *testing.T, d *machine.Plugged) {
	t.Helper()
	rig.WriteAt(t, d.Path, "\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", 16<<10)
	rig.WriteAt(t, d.Path, "\x0c\xb1\xba\x00\x00\x00\x00\x00", 128<<10)
}

func mounted(mkfs, kind string) func(*testing.T, *machine.Plugged) {
	return func(t *testing.T, d *machine.Plugged) {
		t.Helper()
		commands(mkfs)(t, d)
		mount(t, d.Path, kind)
	}
}

func mount(t *testing.T, path, kind string) string {
	t.Helper()
	place := t.TempDir()
	rig.Must(t, unix.Mount(path, place, kind, 0, ""))
	t.Cleanup(func() { rig.UnmountAll(t, place) })
	return place
}

func swap(t *testing.T, d *machine.Plugged) {
	t.Helper()
	commands("mkswap %s", "swapon %s")(t, d)
	undo(t, "swapoff", d.Path)
}

func mountedPartition(t *testing.T, d *machine.Plugged) {
	t.Helper()
	partition("gpt")(t, d)
	run(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.Path+"1")
	mount(t, d.Path+"1", "ext4")
}

// middle fills a twentieth of the disk, far from both ends.
func middle(t *testing.T, d *machine.Plugged) {
	t.Helper()
	rig.WriteAt(t, d.Path, strings.Repeat("data", size/20/4), size/2)
}

// system makes what an installer makes.
func system(t *testing.T, d *machine.Plugged) {
	t.Helper()
	sfdisk(t, d, "label: gpt\nsize=64MiB, type=uefi\ntype=linux\n")
	rig.Eventually(t, func() error { _, err := os.Stat(d.Path + "2"); return err })
	run(t, "mkfs.vfat", d.Path+"1")
	run(t, "mkfs.ext4", "-q", d.Path+"2")
}

// rootCopy copies the beginning of the disk that the machine runs from.
func rootCopy(t *testing.T, d *machine.Plugged) {
	t.Helper()
	rig.WriteAt(t, d.Path, rig.ReadAt(t, "/dev/vda", 64*rig.MiB, 0), 0)
}
