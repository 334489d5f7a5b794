package linux_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestBlockDeviceFacts(t *testing.T) {
	for _, blockSize := range []uint32{512, 4096} {
		disk := rig.NewDiskWithBlockSize(t, 3*rig.MiB, blockSize)
		open := device(t, disk.Path)
		if size, err := linux.BlockSize(open); err != nil || size != 3*rig.MiB {
			t.Errorf("size %d (%v), want %d", size, err, 3*rig.MiB)
		}
		if size, err := linux.LogicalBlockSize(open); err != nil || size != blockSize {
			t.Errorf("block size %d (%v), want %d", size, err, blockSize)
		}
		for _, want := range []bool{true, false} {
			rig.Must(t, setReadOnly(open, want))
			if got, err := linux.BlockReadOnly(open); err != nil || got != want {
				t.Errorf("read-only is %t (%v), want %t", got, err, want)
			}
		}
	}
}

func setReadOnly(device *os.File, readOnly bool) error {
	value := 0
	if readOnly {
		value = 1
	}
	return unix.IoctlSetPointerInt(int(device.Fd()), unix.BLKROSET, value)
}

// The number of a device comes back with another disk; the sequence number does not.
func TestDiskSeqTellsDisksApart(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	seen := map[uint64]bool{}
	for range 3 {
		file, err := os.Open(disk.Path)
		rig.Must(t, err)
		seq, err := linux.DiskSeq(file)
		rig.Must(t, err)
		again, err := linux.DiskSeq(file)
		rig.Must(t, err)
		if seen[seq] || again != seq || seq == 0 {
			t.Errorf("sequence number %d, then %d, after %v", seq, again, seen)
		}
		seen[seq] = true
		rig.Must(t, file.Close())
		disk.Pull(t)
		disk.Plug(t, 512)
	}
}

func TestBlockIoctlsOfOtherFiles(t *testing.T) {
	file := device(t, newFile(t, t.TempDir()+"/file"))
	_, sizeErr := linux.BlockSize(file)
	_, seqErr := linux.DiskSeq(file)
	_, statusErr := linux.StatusOfLoop(file)
	for _, err := range []error{sizeErr, seqErr, statusErr} {
		if !errors.Is(err, unix.ENOTTY) {
			t.Errorf("got %v, want %v", err, unix.ENOTTY)
		}
	}
}

func TestLoopLabel(t *testing.T) {
	for name, test := range map[string]struct{ label, want string }{
		"none":     {"", ""},
		"short":    {"rawblock-test", "rawblock-test"},
		"longest":  {strings.Repeat("x", linux.MaxLoopLabel), strings.Repeat("x", linux.MaxLoopLabel)},
		"too long": {strings.Repeat("x", linux.MaxLoopLabel+1), strings.Repeat("x", linux.MaxLoopLabel)},
	} {
		t.Run(name, func(t *testing.T) {
			loop := attach(t, linux.LoopConfig{Label: test.label})
			if got, err := linux.StatusOfLoop(loop.File); err != nil || got.Label != test.want {
				t.Errorf("label %q (%v), want %q", got.Label, err, test.want)
			}
		})
	}
}

func TestReadOnlyLoopRefusesEveryWrite(t *testing.T) {
	loop := attach(t, linux.LoopConfig{ReadOnly: true})
	if readOnly, err := linux.BlockReadOnly(loop.File); err != nil || !readOnly {
		t.Errorf("read-only is %t (%v)", readOnly, err)
	}
	// Not even who may configure block devices can take it back.
	if err := setReadOnly(loop.File, false); err == nil {
		if readOnly, err := linux.BlockReadOnly(loop.File); err != nil || !readOnly {
			t.Errorf("after BLKROSET read-only is %t (%v)", readOnly, err)
		}
	}
	if err := tryWrite(loop.path); err == nil {
		t.Error("a write went through")
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

func TestConfigureLoopTakesNothingOver(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	backing := device(t, newFile(t, t.TempDir()+"/file"))
	if err := linux.ConfigureLoop(device(t, disk.Path), linux.LoopConfig{Backing: backing}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v, want %v", err, unix.EBUSY)
	}
}

func TestRefreshLoop(t *testing.T) {
	loop := attach(t, linux.LoopConfig{})
	rig.Must(t, os.Truncate(loop.backing, 2*rig.MiB))
	if size, err := linux.BlockSize(loop.File); err != nil || size != rig.MiB {
		t.Errorf("size %d (%v) before, want %d", size, err, rig.MiB)
	}
	rig.Must(t, linux.RefreshLoop(loop.File))
	if size, err := linux.BlockSize(loop.File); err != nil || size != 2*rig.MiB {
		t.Errorf("size %d (%v) after, want %d", size, err, 2*rig.MiB)
	}
}

func TestClearedLoopHasNoLabel(t *testing.T) {
	loop := attach(t, linux.LoopConfig{Label: "rawblock-test"})
	rig.Must(t, linux.ClearLoop(loop.File))
	rig.Must(t, loop.Close()) // The kernel ends it with its last user.
	again, err := os.Open(loop.path)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return
	}
	rig.Must(t, err)
	defer again.Close()
	if status, err := linux.StatusOfLoop(again); !errors.Is(err, unix.ENXIO) {
		t.Errorf("%+v (%v), want %v", status, err, unix.ENXIO)
	}
	if err := linux.ClearLoop(again); !errors.Is(err, unix.ENXIO) {
		t.Errorf("clearing it again: %v, want %v", err, unix.ENXIO)
	}
}

// loop is a loop device over a file of 1 MiB.
type loop struct {
	*os.File
	path, backing string
}

// attach sets up a loop device over a new file until the test ends.
func attach(t *testing.T, config linux.LoopConfig) loop {
	t.Helper()
	rig.RequireRoot(t)
	file := newFile(t, t.TempDir()+"/rawblock-test")
	rig.Must(t, os.Truncate(file, rig.MiB))
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	rig.Must(t, err)
	defer backing.Close()
	config.Backing = backing
	for {
		minor, err := linux.FreeLoop()
		rig.Must(t, err)
		made := loop{path: linux.LoopPath(minor), backing: file}
		made.File, err = os.OpenFile(made.path, os.O_RDWR, 0)
		if err == nil {
			err = linux.ConfigureLoop(made.File, config)
		}
		switch {
		case err == nil:
			t.Cleanup(func() {
				linux.ClearLoop(made.File) //nolint:errcheck // The test may have done so.
				made.Close()
			})
			return made
		case errors.Is(err, unix.EBUSY), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO):
			made.Close() // Another test was faster, or has removed it.
		default:
			t.Fatal(err)
		}
	}
}
