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

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// MiB is 2^20 bytes.
const MiB = 1 << 20

// Disk is a loop device that stands for a disk. It goes with its test.
type Disk struct {
	// Path is its node, /dev/loopN.
	Path string
	// Minor is its number among the loop devices.
	Minor uint32
	// Backing is the file that holds its data.
	Backing string
}

// NewDisk makes a disk of the given size in bytes.
func NewDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	return NewDiskWithBlockSize(t, size, 512)
}

// NewDiskWithBlockSize makes a disk of the given size and logical block size in bytes.
func NewDiskWithBlockSize(t testing.TB, size int64, blockSize uint32) *Disk {
	t.Helper()
	RequireRoot(t)
	disk := &Disk{Backing: filepath.Join(t.TempDir(), "rawblock-test-disk")}
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

// Plug attaches the disk, to a loop device that may be another than before.
func (d *Disk) Plug(t testing.TB, blockSize uint32) {
	t.Helper()
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
// has the other's name and number then.
func (d *Disk) TakePlaceOf(t testing.TB, other *Disk) {
	t.Helper()
	d.Pull(t)
	other.Detach(t)
	Must(t, d.plugInto(t, other.Minor, 512))
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
	if err == nil {
		d.Minor, d.Path = minor, linux.LoopPath(minor)
	}
	return err
}

// Detach empties the loop device, as if the disk had no medium. The node stays.
func (d *Disk) Detach(t testing.TB) {
	t.Helper()
	loop, err := os.Open(d.Path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return
	}
	Must(t, err)
	defer loop.Close()
	if label, err := linux.LoopLabel(loop); err != nil || label != "rawblock-test" {
		return // No longer ours.
	}
	if err := linux.ClearLoop(loop); err != nil && !errors.Is(err, unix.ENXIO) {
		t.Fatal(err)
	}
}

// clearViews detaches the loop devices over the disk, which a test that failed has
// left.
func (d *Disk) clearViews(t testing.TB) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	Must(t, err)
	for _, file := range files {
		if backing, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(backing)) != d.Path {
			continue
		}
		view, err := os.Open("/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file))))
		Must(t, err)
		if err := linux.ClearLoop(view); err != nil && !errors.Is(err, unix.ENXIO) {
			t.Error(err)
		}
		view.Close()
	}
}

// Pull removes the disk and its node from the system, as when somebody pulls it
// out. While it is held open by others only the medium goes.
func (d *Disk) Pull(t testing.TB) {
	t.Helper()
	d.Detach(t)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	Must(t, err)
	defer control.Close()
	for range 50 {
		err = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, int(d.Minor))
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		// Whoever looks at all block devices, such as udev, holds it for a moment.
		if inUseByOthers(d.Minor) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
}

// inUseByOthers reports whether the loop device has been set up again.
func inUseByOthers(minor uint32) bool {
	_, err := os.Stat("/sys/block/loop" + strconv.FormatUint(uint64(minor), 10) + "/loop")
	return err == nil
}

// Resize changes the size of the disk while it is in use.
func (d *Disk) Resize(t testing.TB, size int64) {
	t.Helper()
	Must(t, os.Truncate(d.Backing, size))
	loop, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	Must(t, err)
	defer loop.Close()
	Must(t, linux.RefreshLoop(loop))
}

// Number is the disk's device number.
func (d *Disk) Number() linux.DeviceNumber {
	return linux.DeviceNumber{Major: linux.LoopMajor, Minor: d.Minor}
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
