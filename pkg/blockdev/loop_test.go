package blockdev_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// backing makes a file for a loop device, which is detached at the end.
func backing(t *testing.T, size int64) *os.File {
	t.Helper()
	rig.RequireRoot(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "data"))
	rig.Must(t, err)
	rig.Must(t, file.Truncate(size))
	t.Cleanup(func() {
		for range 3 {
			if _, err := blockdev.NewLoops(sysfs).Detach(context.Background(), file); err == nil {
				break
			}
		}
		file.Close()
	})
	return file
}

func attach(t *testing.T, loops *blockdev.Loops, file *os.File, blockSize uint32) *blockdev.Device {
	t.Helper()
	device, directIO, err := loops.Attach(file, blockdev.LoopOptions{Label: "rawblock-test", BlockSize: blockSize})
	rig.Must(t, err)
	if !directIO {
		t.Error("the page cache is not passed by")
	}
	return device
}

func TestFileBehindALoopDevice(t *testing.T) {
	for _, blockSize := range []uint32{512, 4096} {
		file, loops := backing(t, 8*rig.MiB), blockdev.NewLoops(sysfs)
		device := attach(t, loops, file, blockSize)
		node := device.Node().Name()
		if device.Size() != 8*rig.MiB {
			t.Errorf("%d bytes", device.Size())
		}
		if readOnly, err := device.ReadOnly(); err != nil || readOnly {
			t.Errorf("read-only: %t, %v", readOnly, err)
		}
		rig.WriteAt(t, node, strings.Repeat("x", 4096), 4096)
		if got := rig.ReadAt(t, file.Name(), 1, 4096); got != "x" {
			t.Errorf("the file has %q", got)
		}
		device.Close()

		// After a restart the device is found again by its file.
		again := attach(t, blockdev.NewLoops(sysfs), file, blockSize)
		if again.Node().Name() != node {
			t.Errorf("found as %s, attached as %s", again, node)
		}
		again.Close()
		if inUse, err := loops.Detach(t.Context(), file); err != nil || inUse {
			t.Errorf("in use %t, %v", inUse, err)
		}
		if _, found, err := loops.Find(file); err != nil || found {
			t.Errorf("found after it was detached: %t, %v", found, err)
		}
		if inUse, err := loops.Detach(t.Context(), file); err != nil || inUse {
			t.Errorf("detached twice: in use %t, %v", inUse, err)
		}
	}
}

// The device of a file that was deleted is not that of another file with its name.
func TestStaleLoopDevice(t *testing.T) {
	file, loops := backing(t, rig.MiB), blockdev.NewLoops(sysfs)
	stale := attach(t, loops, file, 512)
	defer stale.Close()
	rig.Must(t, os.Remove(file.Name()))
	other, err := os.Create(file.Name())
	rig.Must(t, err)
	defer other.Close()
	rig.Must(t, other.Truncate(rig.MiB))
	device := attach(t, loops, other, 512)
	defer loops.Detach(t.Context(), other)
	defer device.Close()
	if device.Number() == stale.Number() {
		t.Errorf("the new file is shown as %s, which shows the deleted one", device)
	}
}

// A number that the cache remembers shows another file by now.
func TestReusedLoopDevice(t *testing.T) {
	first, second, loops := backing(t, rig.MiB), backing(t, rig.MiB), blockdev.NewLoops(sysfs)
	device := attach(t, loops, first, 512)
	number := device.Number()
	device.Close()
	_, err := blockdev.NewLoops(sysfs).Detach(t.Context(), first) // Behind the back of loops.
	rig.Must(t, err)
	attach(t, blockdev.NewLoops(sysfs), second, 512).Close()
	if _, found, err := loops.Find(first); err != nil || found {
		t.Errorf("found %t, %v; it was %s", found, err, number)
	}
}

func TestLoopDeviceOfSomebodyElse(t *testing.T) {
	for name, config := range map[string]linux.LoopConfig{
		"read-only": {ReadOnly: true, BlockSize: 512},
	} {
		t.Run(name, func(t *testing.T) {
			file, loops := backing(t, rig.MiB), blockdev.NewLoops(sysfs)
			config.Backing = file
			attachPlainly(t, config)
			_, _, err := loops.Attach(file, blockdev.LoopOptions{BlockSize: 512})
			if !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), "losetup -d") {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("two", func(t *testing.T) {
		file, loops := backing(t, rig.MiB), blockdev.NewLoops(sysfs)
		first := attachPlainly(t, linux.LoopConfig{Backing: file, BlockSize: 512})
		attachPlainly(t, linux.LoopConfig{Backing: file, BlockSize: 512})
		if _, _, err := loops.Attach(file, blockdev.LoopOptions{BlockSize: 512}); !errors.Is(err, volume.ErrInUse) {
			t.Errorf("got %v", err)
		}
		clearLoop(t, first)
	})
}

func attachPlainly(t *testing.T, config linux.LoopConfig) uint32 {
	t.Helper()
	for {
		minor, err := linux.FreeLoop()
		rig.Must(t, err)
		loop, err := linux.OpenLoop(minor, true)
		rig.Must(t, err)
		err = linux.ConfigureLoop(loop, config)
		loop.Close()
		if errors.Is(err, syscall.EBUSY) {
			continue
		}
		rig.Must(t, err)
		return minor
	}
}

func clearLoop(t *testing.T, minor uint32) {
	t.Helper()
	loop, err := linux.OpenLoop(minor, false)
	rig.Must(t, err)
	defer loop.Close()
	rig.Must(t, linux.ClearLoop(loop))
}

// Who has the device open keeps it; and if it is attached again, it stays.
func TestDetachWhileOpen(t *testing.T) {
	file, loops := backing(t, rig.MiB), blockdev.NewLoops(sysfs)
	device := attach(t, loops, file, 512)
	if inUse, err := loops.Detach(t.Context(), file); err != nil || !inUse {
		t.Fatalf("in use %t, %v", inUse, err)
	}
	again := attach(t, loops, file, 512)
	if again.Number() != device.Number() {
		t.Errorf("%s, and then %s, over one file", device, again)
	}
	device.Close()
	again.Close()
	kept, found, err := loops.Find(file)
	if err != nil || !found {
		t.Fatalf("it is gone: %v", err)
	}
	kept.Close()
}

func TestLoopDeviceGrowsWithItsFile(t *testing.T) {
	file, loops := backing(t, rig.MiB), blockdev.NewLoops(sysfs)
	device := attach(t, loops, file, 512)
	defer device.Close()
	rig.Must(t, file.Truncate(3*rig.MiB))
	grown := attach(t, loops, file, 512)
	defer grown.Close()
	rig.Must(t, device.Resize())
	if grown.Size() != 3*rig.MiB || device.Size() != 3*rig.MiB {
		t.Errorf("grown %d, held %d bytes", grown.Size(), device.Size())
	}
}

// More than the kernel has made beforehand, all at once, while others take some
// from /dev/loop-control too.
func TestManyLoopDevicesAtOnce(t *testing.T) {
	const count = 72
	loops, numbers := blockdev.NewLoops(sysfs), sync.Map{}
	files := make([]*os.File, count)
	for i := range files {
		files[i] = backing(t, rig.MiB)
	}
	var group sync.WaitGroup
	for i, file := range files {
		group.Go(func() {
			if i%8 == 0 { // Somebody else.
				minor := attachPlainly(t, linux.LoopConfig{Backing: file, BlockSize: 512})
				numbers.Store(minor, true)
				return
			}
			device, _, err := loops.Attach(file, blockdev.LoopOptions{BlockSize: 512})
			if err != nil {
				t.Error(err)
				return
			}
			defer device.Close()
			if _, twice := numbers.LoadOrStore(device.Number().Minor, true); twice {
				t.Errorf("%s shows two files", device)
			}
		})
	}
	group.Wait()
}

// A pod may change the loop device that it is given in each of these ways.
func TestWhatAUserChangedIsSetBack(t *testing.T) {
	file, loops := backing(t, 4*rig.MiB), blockdev.NewLoops(sysfs)
	options := blockdev.LoopOptions{Label: "rawblock:test", BlockSize: 512}
	device, _, err := loops.Attach(file, options)
	rig.Must(t, err)
	path := linux.LoopPath(device.Number().Minor)
	device.Close()
	t.Cleanup(func() {
		_, err := loops.Detach(context.WithoutCancel(t.Context()), file)
		rig.Must(t, err)
	})
	for name, change := range map[string]func(loop *os.File) error{
		"part":       func(loop *os.File) error { return setStatus(loop, unix.LoopInfo64{Offset: 4096, Sizelimit: 8192}, "") },
		"nothing":    func(loop *os.File) error { return setStatus(loop, unix.LoopInfo64{Offset: 8 * rig.MiB}, "") },
		"label":      func(loop *os.File) error { return setStatus(loop, unix.LoopInfo64{}, "rawblock:another") },
		"end":        func(loop *os.File) error { return setStatus(loop, unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}, "") },
		"block size": func(loop *os.File) error { return linux.SetLoopBlockSize(loop, 4096) },
		"direct I/O": func(loop *os.File) error {
			return unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_DIRECT_IO, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			loop, err := os.OpenFile(path, os.O_RDWR, 0)
			rig.Must(t, err)
			defer loop.Close()
			before, err := linux.StatusOfLoop(loop)
			rig.Must(t, err)
			rig.Must(t, change(loop))
			device, direct, err := loops.Attach(file, options)
			rig.Must(t, err)
			defer device.Close()
			after, err := linux.StatusOfLoop(loop)
			rig.Must(t, err)
			size, err := linux.LogicalBlockSize(loop)
			rig.Must(t, err)
			if !after.Whole() || after.Ends || after.Label != options.Label || size != 512 || device.Size() != 4*rig.MiB || after.DirectIO != before.DirectIO || direct != before.DirectIO {
				t.Errorf("%+v (before %+v), label %q, blocks of %d, %d bytes", after, before, after.Label, size, device.Size())
			}
		})
	}
}

// Partitions that a pod has the kernel make of its volume are devices of the host.
func TestPartitionsOfAVolumeAreForgotten(t *testing.T) {
	for name, flags := range map[string]uint32{"read from the content": unix.LO_FLAGS_PARTSCAN, "told to the kernel": 0} {
		t.Run(name, func(t *testing.T) {
			file, loops := backing(t, 4*rig.MiB), blockdev.NewLoops(sysfs)
			device := attach(t, loops, file, 512)
			path := linux.LoopPath(device.Number().Minor)
			device.Close()
			loop, err := os.OpenFile(path, os.O_RDWR, 0)
			rig.Must(t, err)
			defer loop.Close()
			rig.Must(t, setStatus(loop, unix.LoopInfo64{Flags: flags}, ""))
			// With the flag the kernel makes it, where it is built to read tables of partitions.
			rig.Must(t, linux.AddPartition(loop, 1, rig.MiB, rig.MiB))
			if found, err := sysfs.Partitions(open(t, path).Number()); err != nil || len(found) != 1 {
				t.Fatalf("the pod got %v (%v)", found, err)
			}
			attach(t, loops, file, 512).Close()
			if found, err := sysfs.Partitions(device.Number()); err != nil || len(found) != 0 {
				t.Errorf("the host has %v (%v)", found, err)
			}
		})
	}
}

// Partitions outlive what a loop device shows: who is given its number next has none.
func TestPartitionsOfAFormerUserAreForgotten(t *testing.T) {
	disk, file, loops := rig.NewDisk(t, 4*rig.MiB), backing(t, 4*rig.MiB), blockdev.NewLoops(sysfs)
	former := attach(t, loops, file, 512)
	path := linux.LoopPath(former.Number().Minor)
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	rig.Must(t, err)
	rig.Must(t, linux.AddPartition(loop, 1, rig.MiB, rig.MiB))
	rig.Must(t, loop.Close())
	former.Close()
	_, err = loops.Detach(t.Context(), file)
	rig.Must(t, err)
	if found, err := sysfs.Partitions(former.Number()); err != nil || len(found) != 1 {
		t.Fatalf("of the former user there is %v (%v)", found, err)
	}
	// The kernel gives out the lowest number that is free.
	base := open(t, disk.Path)
	for taken := false; !taken; {
		view, err := base.View("owner")
		rig.Must(t, err)
		defer view.Close()
		t.Cleanup(func() { rig.Must(t, sysfs.ReleaseLoop(view.LoopID())) })
		if view.Number().Minor > former.Number().Minor {
			t.Fatalf("another program has taken %s", path)
		}
		taken = view.Number() == former.Number()
	}
	if found, err := sysfs.Partitions(former.Number()); err != nil || len(found) != 0 {
		t.Errorf("the host has %v of the view (%v)", found, err)
	}
}

// A device that cannot have direct I/O has it no less than when it was attached.
func TestLoopDeviceWithoutDirectIO(t *testing.T) {
	rig.RequireRoot(t)
	for name, mount := range map[string]func(dir string){
		"a filesystem without it": func(dir string) { rig.Must(t, unix.Mount("rawblock-test", dir, "ramfs", 0, "")) },
		"a disk of larger blocks": func(dir string) {
			disk := rig.NewDiskWithBlockSize(t, 16*rig.MiB, 4096).Mount(t, "ext4")
			rig.Must(t, unix.Mount(disk, dir, "", unix.MS_BIND, ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, loops, options := t.TempDir(), blockdev.NewLoops(sysfs), blockdev.LoopOptions{BlockSize: 512}
			mount(dir)
			t.Cleanup(func() { rig.Must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
			file, err := os.Create(filepath.Join(dir, "data"))
			rig.Must(t, err)
			defer file.Close()
			rig.Must(t, file.Truncate(rig.MiB))
			device, direct, err := loops.Attach(file, options)
			rig.Must(t, err)
			device.Close()
			if _, changes, err := loops.Changes(file, options); err != nil || direct || len(changes) != 0 {
				t.Errorf("direct I/O: %t; changed: %q, %v", direct, changes, err)
			}
			_, err = loops.Detach(t.Context(), file)
			rig.Must(t, err)
		})
	}
}

// What is not there, or goes once someone closes it, nobody has changed. One that is
// published, or held, does not go.
func TestChangesOfALoopDeviceThatGoes(t *testing.T) {
	file, loops, options := backing(t, rig.MiB), blockdev.NewLoops(sysfs), blockdev.LoopOptions{Label: "rawblock-test", BlockSize: 512}
	wantChanges := func(when string, count int) {
		t.Helper()
		if path, changes, err := loops.Changes(file, options); err != nil || len(changes) != count {
			t.Errorf("%s, of %q is told %q, %v", when, path, changes, err)
		}
	}
	wantChanges("before it is attached", 0)
	device := attach(t, loops, file, 512)
	defer device.Close()
	wantChanges("attached", 0)
	_, err := loops.Detach(t.Context(), file)
	rig.Must(t, err)
	wantChanges("going", 0)
	hold, err := device.Hold("test")
	rig.Must(t, err)
	wantChanges("held", 1)
	rig.Must(t, sysfs.ReleaseLoop(hold))
}
