package rig

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// MiB is 2^20 bytes.
const MiB = 1 << 20

// Disk is a disk that a test has for itself: a loop device, or, in a guest machine
// (test/vm), one of the machine's. It goes with its test.
type Disk struct {
	// Path is the kernel's node of it, such as /dev/loop3.
	Path string
	// Backing is where its data can be read: the file below a loop device. The media
	// of a machine are outside of it, so there it is the disk itself.
	Backing string

	number linux.DeviceNumber
	// plugged is the disk of the machine; nil: a loop device.
	plugged *machine.Plugged
}

// NewDisk makes a disk of the given size in bytes.
func NewDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	return NewDiskWithBlockSize(t, size, 512)
}

// NewDiskWithBlockSize makes a disk of the given size and logical block size in bytes.
func NewDiskWithBlockSize(t testing.TB, size int64, blockSize uint32) *Disk {
	t.Helper()
	if !machine.Inside() {
		return NewLoop(t, size, blockSize)
	}
	return newMachineDisk(t, size, blockSize)
}

// NewLoop makes a disk of the given size and logical block size in bytes that is a
// loop device everywhere: for tests that are about those.
func NewLoop(t testing.TB, size int64, blockSize uint32) *Disk {
	t.Helper()
	RequireRoot(t)
	disk := &Disk{Backing: diskFile(t)}
	file, err := os.Create(disk.Backing)
	Must(t, err)
	Must(t, file.Truncate(size))
	Must(t, file.Close())
	disk.Plug(t, blockSize)
	t.Cleanup(func() {
		disk.clearViews(t)
		disk.Pull(t)
	})
	return disk
}

// Number is the disk's device number, which it keeps until it is plugged in again.
func (d *Disk) Number() linux.DeviceNumber { return d.number }

// Plug attaches the disk, which may have another name and number than before. A disk
// of a machine keeps its block size.
func (d *Disk) Plug(t testing.TB, blockSize uint32) {
	t.Helper()
	if d.plugged != nil {
		d.plugged.Plug(t)
		d.found(t)
		return
	}
	for {
		minor, err := linux.FreeLoop()
		Must(t, err)
		err = d.plugInto(t, minor, blockSize)
		if errors.Is(err, unix.EBUSY) {
			continue // Another process was faster.
		}
		Must(t, err)
		return
	}
}

// TakePlaceOf pulls both disks out and attaches this one where the other was: it
// has the other's name and number then. A machine gives out the first name that is
// free, so there the other one must have been made first.
func (d *Disk) TakePlaceOf(t testing.TB, other *Disk) {
	t.Helper()
	d.Pull(t)
	if d.plugged == nil {
		other.Detach(t)
		Must(t, d.plugInto(t, other.number.Minor, 512))
		return
	}
	other.Pull(t)
	d.Plug(t, 512)
	if d.number != other.number {
		t.Fatalf("the disk is %s (%s) now, not in the place of %s (%s)", d.Path, d.number, other.Path, other.number)
	}
}

func (d *Disk) plugInto(t testing.TB, minor, blockSize uint32) error {
	t.Helper()
	file, err := os.OpenFile(d.Backing, os.O_RDWR, 0)
	Must(t, err)
	defer file.Close()
	loop, err := os.OpenFile(linux.LoopPath(minor), os.O_RDWR, 0)
	Must(t, err)
	defer loop.Close()
	err = linux.ConfigureLoop(loop, linux.LoopConfig{Backing: file, Label: "rawblock-test", BlockSize: blockSize})
	if err != nil {
		return err
	}
	d.number, d.Path = linux.DeviceNumber{Major: linux.LoopMajor, Minor: minor}, linux.LoopPath(minor)
	// Partitions that someone told the kernel of outlive the medium.
	left, err := blockdev.NewSysfs("/sys").Partitions(d.number)
	Must(t, err)
	for _, partition := range left {
		Must(t, linux.DeletePartition(loop, partition.Index))
	}
	return nil
}

// Detach empties a loop device, as if the disk had no medium. The node stays.
func (d *Disk) Detach(t testing.TB) {
	t.Helper()
	if d.plugged != nil {
		t.Fatal("only a loop device can be without a medium: make it with NewLoop")
	}
	loop, err := os.Open(d.Path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return
	}
	Must(t, err)
	defer loop.Close()
	// Its number can be another's by now. While it is open here, it stays what it is.
	status, err := linux.StatusOfLoop(loop)
	if err != nil || status.Ends {
		return
	}
	if file, err := linux.StatPath(d.Backing); err != nil || status.Backing != file.ID {
		return
	}
	// What the plugin holds a staged loop device with would keep the medium in it.
	d.clearLoops(t, "rawblock-hold:")
	if err := linux.ClearLoop(loop); err != nil && !errors.Is(err, unix.ENXIO) {
		t.Fatal(err)
	}
	Must(t, loop.Close()) // Whoever closes it last ends it.
	for range 100 {
		if !isSetUp(d.number.Minor) {
			return
		}
		// Whoever looks at all block devices, such as udev, holds it for a moment; a
		// test may hold it for longer.
		time.Sleep(10 * time.Millisecond)
	}
}

// clearViews detaches the loop devices over the disk, which a test that failed has
// left.
func (d *Disk) clearViews(t testing.TB) {
	t.Helper()
	d.clearLoops(t, "")
}

// clearLoops detaches the loop devices over the disk whose labels begin with a prefix, and
// those that hold these.
func (d *Disk) clearLoops(t testing.TB, prefix string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	Must(t, err)
	for _, file := range files {
		if !shows(file, d.Path) {
			continue
		}
		path := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file)))
		view, err := os.Open(path)
		Must(t, err)
		// Its number can be another's by now. While it is open here, it stays what it is.
		status, err := linux.StatusOfLoop(view)
		if !shows(file, d.Path) || prefix != "" && (err != nil || !strings.HasPrefix(status.Label, prefix)) {
			view.Close()
			continue
		}
		if prefix == "" {
			(&Disk{Path: path}).clearLoops(t, "rawblock-hold:")
		}
		if err := linux.ClearLoop(view); err != nil && !errors.Is(err, unix.ENXIO) {
			t.Error(err)
		}
		view.Close()
	}
}

// shows reports whether a file of sysfs says that a loop device shows what is at a path.
func shows(backingFile, path string) bool {
	text, err := os.ReadFile(backingFile)
	return err == nil && strings.TrimSpace(string(text)) == path
}

// Pull removes the disk and its node from the system, as when somebody pulls it
// out. While a loop device is held open by others only the medium goes.
func (d *Disk) Pull(t testing.TB) {
	t.Helper()
	if d.plugged != nil {
		d.plugged.Unplug(t)
		return
	}
	d.Detach(t)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	Must(t, err)
	defer control.Close()
	for range 50 {
		err = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, int(d.number.Minor))
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		// Whoever looks at all block devices, such as udev, holds it for a moment.
		if isSetUp(d.number.Minor) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
}

// isSetUp reports whether the loop device has a medium.
func isSetUp(minor uint32) bool {
	_, err := os.Stat("/sys/block/loop" + strconv.FormatUint(uint64(minor), 10) + "/loop")
	return err == nil
}

// Resize changes the size of the disk while it is in use.
func (d *Disk) Resize(t testing.TB, size int64) {
	t.Helper()
	if d.plugged != nil {
		d.resizeInMachine(t, size)
		return
	}
	Must(t, os.Truncate(d.Backing, size))
	loop, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	Must(t, err)
	defer loop.Close()
	Must(t, linux.RefreshLoop(loop))
}

// WriteAt writes to the device node at path, past the page cache of the
// descriptor's user: the data is on the disk when it returns.
func WriteAt(t testing.TB, path string, data string, offset int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_SYNC, 0)
	Must(t, err)
	defer file.Close()
	_, err = file.WriteAt([]byte(data), offset)
	Must(t, err)
}

// ReadAt reads length bytes from the file or device node at path.
func ReadAt(t testing.TB, path string, length int, offset int64) string {
	t.Helper()
	file, err := os.Open(path)
	Must(t, err)
	defer file.Close()
	data := make([]byte, length)
	_, err = file.ReadAt(data, offset)
	Must(t, err)
	return string(data)
}

// ReadPastCache reads length bytes from the device node at path as they are on the
// device. The page cache can have older ones of it while anybody has it open, such as
// udev, where they were written through another device.
func ReadPastCache(t testing.TB, path string, length int, offset int64) string {
	t.Helper()
	node, err := linux.OpenPath(path)
	Must(t, err)
	defer node.Close()
	raw, err := linux.OpenRaw(node, 0)
	Must(t, err)
	defer raw.Close()
	data := make([]byte, length)
	_, err = raw.ReadAt(data, offset)
	Must(t, err)
	return string(data)
}

// ReadDirect reads the beginning of a device past the page cache.
func ReadDirect(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buffer, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(buffer)
	_, err = unix.Pread(fd, buffer, 0)
	return err
}
