package disk_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

var errNotYet = errors.New("what the test waits for does not happen")

// Whatever has or could have data, or is in use, is left as it is.
func TestDisksThatAreNotFree(t *testing.T) {
	for name, test := range map[string]struct {
		prepare     func(t *testing.T, d *rig.Disk)
		state, says string
	}{
		"filesystem": {func(t *testing.T, d *rig.Disk) { run(t, "mkfs.ext4", "-q", d.Path) }, "occupied", "ext2/3/4 filesystem"},
		"mounted": {func(t *testing.T, d *rig.Disk) {
			run(t, "mkfs.ext4", "-q", d.Path)
			place := t.TempDir()
			rig.Must(t, unix.Mount(d.Path, place, "ext4", unix.MS_RDONLY, "")) // ext4 writes by itself, too.
			t.Cleanup(func() { rig.UnmountAll(t, place) })
		}, "busy", "mounted at"},
		"swap":                     {func(t *testing.T, d *rig.Disk) { run(t, "mkswap", d.Path) }, "occupied", "swap"},
		"table of others":          {func(t *testing.T, d *rig.Disk) { sfdisk(t, d.Path, "label: gpt\nstart=1MiB, size=2MiB\n") }, "occupied", "partition table of others"},
		"MBR":                      {func(t *testing.T, d *rig.Disk) { sfdisk(t, d.Path, "label: dos\nstart=1MiB, size=2MiB\n") }, "occupied", "it has data"},
		"a byte in the head":       {func(t *testing.T, d *rig.Disk) { rig.WriteAt(t, d.Path, "x", 3*rig.MiB+5) }, "occupied", "at 3145733"},
		"a byte in the tail":       {func(t *testing.T, d *rig.Disk) { rig.WriteAt(t, d.Path, "x", diskSize-1) }, "occupied", fmt.Sprint("at ", diskSize-1)},
		"data in the middle":       {func(t *testing.T, d *rig.Disk) { rig.WriteAt(t, d.Path, strings.Repeat("x", 4*rig.MiB), 18*rig.MiB) }, "occupied", "at 18874368"},
		"partitions in the kernel": {func(t *testing.T, d *rig.Disk) { d.AddPartition(t, 1) }, "busy", "partitions"},
		"claimed": {func(t *testing.T, d *rig.Disk) {
			file, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_EXCL, 0)
			rig.Must(t, err)
			t.Cleanup(func() { file.Close() })
		}, "busy", "claimed exclusively"},
		"published as it is": {func(t *testing.T, d *rig.Disk) {
			target := t.TempDir() + "/target"
			rig.Must(t, os.WriteFile(target, nil, 0o600))
			rig.Must(t, unix.Mount(d.Path, target, "", unix.MS_BIND, ""))
			t.Cleanup(func() { rig.UnmountAll(t, target) })
		}, "busy", "is published as a volume"},
	} {
		t.Run(name, func(t *testing.T) {
			d := rig.NewDisk(t, diskSize)
			test.prepare(t, d)
			before, err := os.ReadFile(d.Backing)
			rig.Must(t, err)
			pool := openPool(t, "fast", match(d))
			wantRefused(t, pool, d, test.state, test.says)
			_, err = pool.Create(rig.Context(t), spec("a", rig.MiB))
			wantError(t, err, volume.ErrExhausted, "the pool has no disk: "+filepath.Base(d.Path))
			after, err := os.ReadFile(d.Backing)
			rig.Must(t, err)
			if string(before) != string(after) {
				t.Error("the disk was written to")
			}
		})
	}
}

func TestTooSmallDisk(t *testing.T) {
	d := rig.NewDisk(t, 2*rig.MiB)
	wantRefused(t, openPool(t, "fast", match(d)), d, "unfit", "too small")
}

func TestDiskOfAnotherPool(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	newPool(t, match(d))
	other, err := disk.New(quiet(t), "other", match(d), sysfs)
	rig.Must(t, err)
	defer other.Close()
	wantRefused(t, other, d, "foreign", "it belongs to the pool fast")
}

// While the plugin runs, no other program can claim the disk, nor a second plugin.
func TestDiskOfThePoolIsClaimed(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	newPool(t, match(d))
	if out, err := exec.CommandContext(t.Context(), "mkswap", d.Path).CombinedOutput(); err == nil {
		t.Errorf("mkswap took the disk over: %s", out)
	}
	device, err := blockdev.Open(d.Path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	wantError(t, device.CheckFree(), volume.ErrInUse, d.Path)
	second, err := disk.New(quiet(t), "fast", match(d), sysfs)
	rig.Must(t, err)
	defer second.Close()
	wantRefused(t, second, d, "busy", "claimed exclusively")
}

// A disk that somebody has wiped is adopted with the next volume that needs it.
func TestDiskThatBecomesFree(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	rig.WriteAt(t, d.Path, "x", 0)
	pool := openPool(t, "fast", match(d))
	wantRefused(t, pool, d, "occupied", "it has data")
	rig.WriteAt(t, d.Path, "\x00", 0)
	_, err := pool.Create(rig.Context(t), spec("a", rig.MiB))
	wantError(t, err, volume.ErrExhausted, "being wiped")
	waitForWipe(t, pool)
	create(t, pool, "a", rig.MiB)
}

// Nothing but the disks says what there is.
func TestRestart(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	options := match(d)
	pool := newPool(t, options)
	create(t, pool, "a", 4*rig.MiB)
	fill(t, pool, "a", "a")
	for name, end := range map[string]func(){
		"plugin":  func() { pool.Close() },
		"machine": func() { closePool(t, pool, options) },
	} {
		end() // Of the pool that is open now: two would fight for the disk.
		pool = newPool(t, options)
		info, err := pool.Get(rig.Context(t), "a")
		if err != nil || info.Size != 4*rig.MiB {
			t.Errorf("after a restart of the %s: %+v (%v)", name, info, err)
		}
		wantFilled(t, pool, "a", "a")
		wantCapacity(t, pool, volume.Capacity{Available: roomSize - 4*rig.MiB, MaxVolume: roomSize - 4*rig.MiB, MinVolume: rig.MiB})
	}
}

// A volume that is in use stays as it is when the plugin comes back.
func TestRestartBelowAVolumeInUse(t *testing.T) {
	options := match(rig.NewDisk(t, diskSize))
	pool := newPool(t, options)
	create(t, pool, "a", 4*rig.MiB)
	device, err := pool.Activate(rig.Context(t), "a")
	rig.Must(t, err)
	defer device.Close()
	claim, err := device.Raw(linux.RawExclusive)
	rig.Must(t, err)
	defer claim.Close()
	pool.Close()
	again := newPool(t, options)
	if path := activate(t, again, "a"); path != device.Node().Name() {
		t.Errorf("it is %s now, was %s", path, device.Node().Name())
	}
	create(t, again, "b", 4*rig.MiB)
	rig.Must(t, again.Delete(rig.Context(t), "b"))
	wantError(t, again.Delete(rig.Context(t), "a"), volume.ErrInUse, "")
}

// One copy of the table is damaged: the other is used, and it is mended. Both are:
// the disk is left alone.
func TestDamagedTable(t *testing.T) {
	garbage := strings.Repeat("garbage!", 64)
	for name, test := range map[string]struct {
		places      []int64
		state, says string
	}{
		"primary": {[]int64{512}, "", ""},
		"entries": {[]int64{1024}, "", ""},
		"backup":  {[]int64{diskSize - 512}, "", ""},
		"MBR":     {[]int64{0}, "", ""},
		"both":    {[]int64{512, diskSize - 1024}, "occupied", "both copies of the partition table are damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			d := rig.NewDisk(t, diskSize)
			options := match(d)
			pool := newPool(t, options)
			create(t, pool, "a", 4*rig.MiB)
			fill(t, pool, "a", "a")
			closePool(t, pool, options)
			for _, place := range test.places {
				rig.WriteAt(t, d.Path, garbage, place)
			}
			again := openPool(t, "fast", options)
			if test.state != "" {
				wantRefused(t, again, d, test.state, test.says)
				return
			}
			wantFilled(t, again, "a", "a")
			if found := readTable(t, d); found.Primary != nil || found.Backup != nil {
				t.Errorf("not mended: primary %v, backup %v", found.Primary, found.Backup)
			}
		})
	}
}

// Somebody made a filesystem over our disk while the plugin did not run: the backup
// of the table is no reason to destroy that.
func TestFilesystemOverOurTable(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	options := match(d)
	closePool(t, newPool(t, options), options)
	run(t, "mkfs.ext4", "-q", "-F", d.Path, "32M") // It ends before the backup.
	wantRefused(t, openPool(t, "fast", options), d, "occupied", "in place of the partition table it has ext2/3/4 filesystem at 1080")
	run(t, "e2fsck", "-fn", d.Path)
}

func TestOptions(t *testing.T) {
	d := rig.NewDisk(t, rig.MiB)
	for name, change := range map[string]func(*disk.Options){
		"layout":   func(o *disk.Options) { o.Layout = "raid" },
		"wipe":     func(o *disk.Options) { o.Wipe = "shred" },
		"no wipe":  func(o *disk.Options) { o.Wipe = "none" },
		"no match": func(o *disk.Options) { o.Match = disk.Selector{} },
	} {
		options := match(d)
		change(&options)
		if _, err := disk.New(quiet(t), "fast", options, sysfs); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: got %v, want %v", name, err, volume.ErrInvalid)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(context.Background(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

func sfdisk(t *testing.T, path, script string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "sfdisk", "--no-reread", "--no-tell-kernel", path)
	command.Stdin = strings.NewReader(script)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
}
