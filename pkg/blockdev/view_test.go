package blockdev_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestViewRefusesEveryWrite(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	rig.WriteAt(t, disk.Path, "written before", 4096)
	path := viewOf(t, disk, "owner")
	if got := rig.ReadAt(t, path, 14, 4096); got != "written before" {
		t.Errorf("the view shows %q", got)
	}
	if err := tryWrite(path); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EROFS) {
		t.Errorf("a write to the view: %v, want it refused", err)
	}
	// The disk stays writable for its other users, and the view shows it.
	rig.WriteAt(t, disk.Path, "written after", 4096)
	if got := rig.ReadPastCache(t, path, 13, 4096); got != "written after" {
		t.Errorf("the view shows %q", got)
	}
	view := open(t, path)
	if readOnly, err := view.ReadOnly(); err != nil || !readOnly {
		t.Errorf("the view is read-only: %t (%v)", readOnly, err)
	}
	if readOnly, err := open(t, disk.Path).ReadOnly(); err != nil || readOnly {
		t.Errorf("the disk is read-only: %t (%v)", readOnly, err)
	}
}

// tryWrite opens the device at path for writing and writes a block.
func tryWrite(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(make([]byte, 512), 0)
	return errors.Join(err, file.Close())
}

func TestViewIsFoundAgain(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	first := viewOf(t, disk, "owner")
	// A new one could get the same number, but not the same sequence number.
	seq := open(t, first).DiskSeq()
	if again := viewOf(t, disk, "owner"); again != first || open(t, again).DiskSeq() != seq {
		t.Errorf("a second call made %s beside %s, or made it anew", again, first)
	}
	other := viewOf(t, disk, "another owner")
	if other == first {
		t.Error("two owners share a view")
	}
	for _, test := range []struct {
		path, owner string
		want        bool
	}{
		{first, "owner", true},
		{first, "another owner", false},
		{other, "another owner", true},
		{other, "", true},
		{disk.Path, "owner", false},
		{disk.Path, "", false},
	} {
		if got, err := open(t, test.path).IsViewOf(test.owner); err != nil || got != test.want {
			t.Errorf("%s is a view of %q: %t (%v), want %t", test.path, test.owner, got, err, test.want)
		}
	}
}

// The path is the same, the disk is not.
func TestViewOfAnEarlierDiskIsReplaced(t *testing.T) {
	earlier, disk := rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB)
	rig.WriteAt(t, disk.Path, "the new disk", 0)
	stale := viewOf(t, earlier, "owner")
	path := viewOf(t, disk, "owner")
	if got := rig.ReadAt(t, path, 12, 0); got != "the new disk" {
		t.Errorf("the view shows %q", got)
	}
	if stale != path {
		wantNoView(t, stale)
	}
}

func TestReleaseOfAnotherOwner(t *testing.T) {
	path := viewOf(t, rig.NewDisk(t, rig.MiB), "owner")
	rig.Must(t, blockdev.ReleaseView(minorOf(t, path), "another owner"))
	if got, err := open(t, path).IsViewOf("owner"); err != nil || !got {
		t.Fatalf("released for another owner: %t (%v)", got, err)
	}
}

func TestReleasedViewIsGone(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	for name, release := range map[string]func(minor uint32) error{
		"by number": func(minor uint32) error { return blockdev.ReleaseView(minor, "owner") },
		"by owner":  func(uint32) error { return sysfs.ReleaseViews("owner") },
	} {
		t.Run(name, func(t *testing.T) {
			path, kept := viewOf(t, disk, "owner"), viewOf(t, disk, "another owner")
			minor := minorOf(t, path)
			for range 2 { // It may be repeated.
				rig.Must(t, release(minor))
			}
			wantNoView(t, path)
			if got, err := open(t, kept).IsViewOf("another owner"); err != nil || !got {
				t.Errorf("the view of another owner has gone with it (%v)", err)
			}
			rig.Must(t, blockdev.ReleaseView(1<<20-1, "owner")) // There is no such loop device.
		})
	}
}

// A view that its user still has open goes with the last descriptor.
func TestReleasedViewInUse(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	path := viewOf(t, disk, "owner")
	user, err := os.Open(path)
	rig.Must(t, err)
	rig.Must(t, blockdev.ReleaseView(minorOf(t, path), "owner"))
	if _, err := user.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("its user cannot read any more: %v", err)
	}
	rig.Must(t, user.Close())
	wantNoView(t, path)
}

// Who publishes again while the last user is still there must not lose the view
// together with that user.
func TestViewIsMadeAnewAfterRelease(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	released := viewOf(t, disk, "owner")
	user, err := os.Open(released)
	rig.Must(t, err)
	rig.Must(t, blockdev.ReleaseView(minorOf(t, released), "owner"))
	path := viewOf(t, disk, "owner")
	rig.Must(t, user.Close())
	if isView, err := open(t, path).IsViewOf("owner"); err != nil || !isView {
		t.Errorf("%s is a view: %t (%v)", path, isView, err)
	}
	wantNoView(t, released)
}

func TestReleaseLeavesForeignLoopDevicesAlone(t *testing.T) {
	disk := rig.NewLoop(t, rig.MiB, 512)
	rig.Must(t, blockdev.ReleaseView(disk.Number().Minor, "owner"))
	rig.Must(t, blockdev.ReleaseView(disk.Number().Minor, ""))
	rig.Must(t, sysfs.ReleaseViews("owner"))
	if size := open(t, disk.Path).Size(); size != rig.MiB {
		t.Errorf("the disk has %d bytes left", size)
	}
}

func TestViewHasTheBlockSizeOfItsDisk(t *testing.T) {
	for _, want := range []uint32{512, 4096} {
		disk := rig.NewDiskWithBlockSize(t, rig.MiB, want)
		file, err := os.Open(viewOf(t, disk, "owner"))
		rig.Must(t, err)
		defer file.Close()
		if got, err := linux.LogicalBlockSize(file); err != nil || got != want {
			t.Errorf("block size %d (%v), want %d", got, err, want)
		}
	}
}

// Kubelet puts a loop device of its own on what it was given.
func TestLosetupOnAView(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	rig.WriteAt(t, disk.Path, "on the disk", 0)
	path := strings.TrimSpace(run(t, "losetup", "--find", "--show", viewOf(t, disk, "owner")))
	defer run(t, "losetup", "--detach", path)
	if got := rig.ReadAt(t, path, 11, 0); got != "on the disk" {
		t.Errorf("kubelet's loop device shows %q", got)
	}
	if err := tryWrite(path); err == nil {
		t.Error("a write went through kubelet's loop device")
	}
}

// The label is the record of whose view a loop device is: it must not be cut.
func TestViewLabelFits(t *testing.T) {
	label := blockdev.ViewLabel(strings.Repeat("x", 5000)) + strings.Repeat("f", 16) // The longest sequence number in hex.
	if len(label) > linux.MaxLoopLabel {
		t.Errorf("%q has %d bytes, the kernel keeps %d", label, len(label), linux.MaxLoopLabel)
	}
	if blockdev.ViewLabel("a") == blockdev.ViewLabel("b") {
		t.Error("two owners have one label")
	}
}

// viewOf makes a view of a disk that lasts until the test ends, keeps nothing
// open, and returns its path.
func viewOf(t *testing.T, disk *rig.Disk, owner string) string {
	t.Helper()
	device, err := blockdev.Open(disk.Path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	view, err := device.ReadOnlyView(owner)
	rig.Must(t, err)
	defer view.Close()
	t.Cleanup(func() { releaseViews(t, owner) })
	if view.Size() != device.Size() || view.Number() == device.Number() {
		t.Fatalf("the view %s has %d bytes, the disk %s has %d", view, view.Size(), device, device.Size())
	}
	return linux.LoopPath(view.Number().Minor)
}

func releaseViews(t *testing.T, owner string) {
	t.Helper()
	rig.Must(t, sysfs.ReleaseViews(owner))
}

func minorOf(t *testing.T, path string) uint32 {
	t.Helper()
	device, err := blockdev.Open(path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	return device.Number().Minor
}

// wantNoView checks that the loop device at path is no view any more. It may be
// another test's by now.
func wantNoView(t *testing.T, path string) {
	t.Helper()
	device, err := blockdev.Open(path, sysfs)
	if errors.Is(err, volume.ErrNotFound) {
		return
	}
	rig.Must(t, err)
	defer device.Close()
	if isView, err := device.IsViewOf("owner"); err != nil || isView {
		t.Errorf("%s is still a view: %t (%v)", path, isView, err)
	}
}
