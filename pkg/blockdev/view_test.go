package blockdev_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestViewRefusesEveryWrite(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	rig.WriteAt(t, disk.Path, "written before", 4096)
	path := linux.LoopPath(viewOf(t, disk).Minor)
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

// A view is released by what it is, and only once.
func TestReleasedViewIsGone(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	released, kept := viewOf(t, disk), viewOf(t, disk)
	for range 2 { // It may be repeated.
		rig.Must(t, sysfs.ReleaseLoop(released))
	}
	wantView(t, released, disk, false)
	wantView(t, kept, disk, true)
	rig.Must(t, sysfs.ReleaseLoop(blockdev.LoopID{Minor: 1<<20 - 1})) // There is no such loop device.
	rig.Must(t, sysfs.ReleaseLoop(blockdev.LoopID{Minor: kept.Minor, Seq: kept.Seq - 1}))
	wantView(t, kept, disk, true)
}

// A view that its user still has open goes with the last descriptor.
func TestReleasedViewInUse(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	view := viewOf(t, disk)
	user, err := os.Open(linux.LoopPath(view.Minor))
	rig.Must(t, err)
	rig.Must(t, sysfs.ReleaseLoop(view))
	if _, err := user.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("its user cannot read any more: %v", err)
	}
	rig.Must(t, user.Close())
	wantView(t, view, disk, false)
}

func TestReleaseLeavesWritableLoopDevicesAlone(t *testing.T) {
	disk := rig.NewLoop(t, rig.MiB, 512)
	rig.Must(t, sysfs.ReleaseView(disk.Number().Minor))
	rig.Must(t, sysfs.ReleaseLoop(open(t, disk.Path).LoopID()))
	if size := open(t, disk.Path).Size(); size != rig.MiB {
		t.Errorf("the disk has %d bytes left", size)
	}
}

// Whatever the user of a view makes of it, it can be made to show its disk again.
func TestViewIsRestored(t *testing.T) {
	for name, tamper := range map[string]func(t *testing.T, view *os.File){
		"label and the end": func(t *testing.T, view *os.File) {
			rig.Must(t, setStatus(view, unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}, "mine"))
		},
		"a part": func(t *testing.T, view *os.File) {
			rig.Must(t, setStatus(view, unix.LoopInfo64{Offset: 4096, Sizelimit: 8192}, "rawblock-ro:"))
		},
		"another file": func(t *testing.T, view *os.File) {
			rig.Must(t, linux.ChangeLoop(view, backing(t, rig.MiB)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := rig.NewDisk(t, rig.MiB)
			rig.WriteAt(t, disk.Path, "on the disk", 0)
			device := open(t, disk.Path)
			view, err := device.View("owner")
			rig.Must(t, err)
			defer view.Close()
			hold, err := view.Hold("owner")
			rig.Must(t, err)
			t.Cleanup(func() {
				rig.Must(t, sysfs.ReleaseView(view.Number().Minor))
				rig.Must(t, sysfs.ReleaseLoop(hold))
			})
			file, err := os.OpenFile(linux.LoopPath(view.Number().Minor), os.O_RDONLY, 0)
			rig.Must(t, err)
			defer file.Close()
			tamper(t, file)
			if is, err := view.IsViewOf(device); is || err != nil {
				t.Fatalf("after it was tampered with, it is a view: %t (%v)", is, err)
			}
			rig.Must(t, view.RestoreView(device, "owner"))
			if is, err := view.IsViewOf(device); !is || err != nil {
				t.Errorf("restored, it is a view: %t (%v)", is, err)
			}
			if got := rig.ReadPastCache(t, linux.LoopPath(view.Number().Minor), 11, 0); got != "on the disk" {
				t.Errorf("restored, it shows %q", got)
			}
		})
	}
}

// A pod may detach its loop device: held, the number stays taken.
func TestHoldKeepsTheNumber(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device := open(t, disk.Path)
	view, err := device.View("owner")
	rig.Must(t, err)
	hold, err := view.Hold("owner")
	rig.Must(t, err)
	id := view.LoopID()
	view.Close()
	file, err := os.Open(linux.LoopPath(id.Minor))
	rig.Must(t, err)
	rig.Must(t, linux.ClearLoop(file))
	rig.Must(t, file.Close())
	again := open(t, linux.LoopPath(id.Minor))
	if again.LoopID() != id {
		t.Errorf("it is %v, was %v", again.LoopID(), id)
	}
	rig.Must(t, again.RestoreView(device, "owner"))
	again.Close()
	if held, err := sysfs.IsOver(hold, id.Number()); err != nil || !held {
		t.Errorf("held: %t (%v)", held, err)
	}
	rig.Must(t, sysfs.ReleaseLoop(hold))
	wantView(t, id, disk, true)
	rig.Must(t, sysfs.ReleaseLoop(id))
	wantView(t, id, disk, false)
}

// The plugin that made a hold was a container, which has ended: of the path of what is held
// the kernel tells only the end.
func TestHoldOfAnEndedContainer(t *testing.T) {
	device := open(t, rig.NewDisk(t, rig.MiB).Path)
	var hold blockdev.LoopID
	held := make(chan error, 1)
	go onThreadOfItsOwn(func() {
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("/dev", "/dev", "", unix.MS_BIND, ""))
		}
		if err == nil {
			hold, err = device.Hold("owner")
		}
		held <- err
	})
	rig.Must(t, <-held)
	t.Cleanup(func() { rig.Must(t, sysfs.ReleaseLoop(hold)) })
	rig.Eventually(t, func() error {
		path, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", hold.Minor))
		if err == nil && strings.HasPrefix(string(path), "/dev/") {
			err = fmt.Errorf("its namespace is still there: %s", path)
		}
		return err
	})
	rig.Must(t, sysfs.ReleaseHolds(device.Number(), "owner"))
	if held, err := sysfs.IsOver(hold, device.Number()); held || err != nil {
		t.Errorf("after it was released, it is held: %t (%v)", held, err)
	}
}

// onThreadOfItsOwn runs f on a thread that ends with it, and its namespaces with that. The
// process's first thread never ends.
func onThreadOfItsOwn(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThreadOfItsOwn(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

func setStatus(loop *os.File, status unix.LoopInfo64, label string) error {
	copy(status.File_name[:], label)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, loop.Fd(), unix.LOOP_SET_STATUS64, uintptr(unsafe.Pointer(&status))); errno != 0 {
		return errno
	}
	return nil
}

func TestViewHasTheBlockSizeOfItsDisk(t *testing.T) {
	for _, want := range []uint32{512, 4096} {
		disk := rig.NewDiskWithBlockSize(t, rig.MiB, want)
		file, err := os.Open(linux.LoopPath(viewOf(t, disk).Minor))
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
	path := strings.TrimSpace(run(t, "losetup", "--find", "--show", linux.LoopPath(viewOf(t, disk).Minor)))
	defer run(t, "losetup", "--detach", path)
	if got := rig.ReadAt(t, path, 11, 0); got != "on the disk" {
		t.Errorf("kubelet's loop device shows %q", got)
	}
	if err := tryWrite(path); err == nil {
		t.Error("a write went through kubelet's loop device")
	}
}

// viewOf makes a view of a disk that lasts until the test ends, and keeps nothing open.
func viewOf(t *testing.T, disk *rig.Disk) blockdev.LoopID {
	t.Helper()
	device, err := blockdev.Open(disk.Path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	view, err := device.View("owner")
	rig.Must(t, err)
	defer view.Close()
	id := view.LoopID()
	t.Cleanup(func() { rig.Must(t, sysfs.ReleaseLoop(id)) })
	if view.Size() != device.Size() || view.Number() == device.Number() {
		t.Fatalf("the view %s has %d bytes, the disk %s has %d", view, view.Size(), device, device.Size())
	}
	return id
}

// wantView checks whether a loop device is a view of a disk.
func wantView(t *testing.T, id blockdev.LoopID, disk *rig.Disk, want bool) {
	t.Helper()
	if is, err := sysfs.IsOver(id, disk.Number()); err != nil || is != want {
		t.Errorf("%v is a view: %t (%v), want %t", id, is, err, want)
	}
}
