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
		"read-only":      {ReadOnly: true, BlockSize: 512},
		"another blocks": {BlockSize: 4096},
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
