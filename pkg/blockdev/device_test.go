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

func TestOpen(t *testing.T) {
	disk, dir := rig.NewDisk(t, 3*rig.MiB), t.TempDir()
	empty := rig.NewLoop(t, rig.MiB, 512)
	empty.Detach(t)
	rig.Must(t, os.Symlink(disk.Path, dir+"/link"))
	rig.Must(t, os.Symlink("nowhere", dir+"/dangling"))
	rig.Must(t, os.WriteFile(dir+"/file", nil, 0o600))
	// A number that no driver gives out.
	rig.Must(t, unix.Mknod(dir+"/nobody", unix.S_IFBLK|0o600, int(unix.Mkdev(4000, 1))))
	for name, test := range map[string]struct {
		path string
		want error
		says string
	}{
		"node":                 {disk.Path, nil, ""},
		"link":                 {dir + "/link", nil, ""},
		"missing":              {dir + "/missing", volume.ErrNotFound, "no device at " + dir + "/missing"},
		"below a file":         {dir + "/file/x", volume.ErrNotFound, "no device at"},
		"dangling link":        {dir + "/dangling", volume.ErrNotFound, "no device at"},
		"no driver":            {dir + "/nobody", volume.ErrNotFound, "has gone"},
		"no medium":            {empty.Path, volume.ErrNotFound, "has gone"},
		"regular file":         {dir + "/file", volume.ErrInvalid, "it is a regular file"},
		"directory":            {dir, volume.ErrInvalid, "it is a directory"},
		"character device":     {"/dev/null", volume.ErrInvalid, "it is a character device"},
		"name is too long":     {"/dev/" + strings.Repeat("x", 300), unix.ENAMETOOLONG, "file name too long"},
		"directory that loops": {loopOfLinks(t) + "/x", unix.ELOOP, "too many levels of symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			device, err := blockdev.Open(test.path, sysfs)
			if err == nil {
				defer device.Close()
			}
			if !errors.Is(err, test.want) || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v; want %v and the words %q", err, test.want, test.says)
			}
			if err == nil && (device.Number() != disk.Number() || device.Size() != 3*rig.MiB) {
				t.Errorf("got %s of %d bytes, want %s of %d", device, device.Size(), disk.Number(), 3*rig.MiB)
			}
		})
	}
}

func loopOfLinks(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/loop"
	rig.Must(t, os.Symlink(path, path))
	return path
}

// As long as a device is open, its number is not given to another disk.
func TestOpenDeviceKeepsItsNumber(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	first, err := blockdev.Open(disk.Path, sysfs)
	rig.Must(t, err)
	disk.Pull(t)
	number := disk.Number()
	disk.Plug(t, 512)
	if disk.Number() == number {
		t.Errorf("the number %s was given out again while it was open", number)
	}
	second := open(t, disk.Path)
	if first.DiskSeq() == second.DiskSeq() || first.DiskSeq() == 0 {
		t.Errorf("both have the sequence number %d", first.DiskSeq())
	}
	first.Close()
}

func TestOpenNumber(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device, err := blockdev.OpenNumber(disk.Number(), sysfs)
	rig.Must(t, err)
	defer device.Close()
	if device.Number() != disk.Number() {
		t.Errorf("got %s, want %s", device, disk.Number())
	}
	gone := linux.DeviceNumber{Major: linux.LoopMajor, Minor: 1<<20 - 1}
	if _, err := blockdev.OpenNumber(gone, sysfs); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a number that is not there: %v, want %v", err, volume.ErrNotFound)
	}
	// The name belongs to another device by now.
	stale := tree{"dev/block/7:1048575/uevent": "DEVNAME=" + strings.TrimPrefix(disk.Path, "/dev/") + "\n"}.write(t)
	if _, err := blockdev.OpenNumber(gone, stale); !errors.Is(err, volume.ErrMismatch) {
		t.Errorf("a name of another device: %v, want %v", err, volume.ErrMismatch)
	}
}

func TestReadOnly(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device := open(t, disk.Path)
	file, err := os.Open(disk.Path)
	rig.Must(t, err)
	defer file.Close()
	for value, want := range []bool{false, true} {
		rig.Must(t, unix.IoctlSetPointerInt(int(file.Fd()), unix.BLKROSET, value))
		if got, err := device.ReadOnly(); err != nil || got != want {
			t.Errorf("read-only is %t (%v), want %t", got, err, want)
		}
	}
}

func TestResizeTakesOverTheSize(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device := open(t, disk.Path)
	view, err := device.View("owner")
	rig.Must(t, err)
	t.Cleanup(func() { rig.Must(t, sysfs.ReleaseLoop(view.LoopID())) })
	defer view.Close()
	disk.Resize(t, 2*rig.MiB)
	for name, opened := range map[string]*blockdev.Device{"device": device, "view": view} {
		if opened.Size() != rig.MiB {
			t.Errorf("%s: size %d before", name, opened.Size())
		}
		rig.Must(t, opened.Resize())
		if opened.Size() != 2*rig.MiB {
			t.Errorf("%s: size %d after", name, opened.Size())
		}
	}
}
