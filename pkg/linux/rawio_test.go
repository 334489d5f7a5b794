package linux_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// raw opens the device at path past the page cache until the test ends.
func raw(t *testing.T, path string, mode linux.RawMode) *linux.Raw {
	t.Helper()
	file, err := linux.OpenRaw(handle(t, path), mode)
	rig.Must(t, err)
	t.Cleanup(file.Close)
	return file
}

// Whatever is read has no need to fit the blocks of the device.
func TestRawReadsAnyPlace(t *testing.T) {
	for _, block := range []uint32{512, 4096} {
		disk := rig.NewDiskWithBlockSize(t, rig.MiB, block)
		text := strings.Repeat("0123456789abcde\n", rig.MiB/16)
		rig.WriteAt(t, disk.Path, text, 0)
		device := raw(t, disk.Path, 0)
		for _, place := range []struct{ offset, length int }{
			{0, 0}, {0, 1}, {1, 1}, {0, int(block)}, {4095, 2}, {5, 3 * 4096}, {4096, 8192}, {rig.MiB - 1, 1}, {0, rig.MiB},
		} {
			got := make([]byte, place.length)
			n, err := device.ReadAt(got, int64(place.offset))
			if want := text[place.offset:][:place.length]; err != nil || string(got) != want {
				t.Errorf("%d bytes at %d: %d (%v), other than written", place.length, place.offset, n, err)
			}
		}
		for offset, want := range map[int64]int{rig.MiB - 3: 3, rig.MiB: 0, 3 * rig.MiB: 0} {
			if n, err := device.ReadAt(make([]byte, 5), offset); n != want || !errors.Is(err, io.EOF) {
				t.Errorf("5 bytes at %d: %d (%v), want %d and %v", offset, n, err, want, io.EOF)
			}
		}
		if _, err := device.ReadAt(make([]byte, 5), -1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("before the start: %v", err)
		}
	}
}

func TestRawWrites(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device := raw(t, disk.Path, linux.RawWrite|linux.RawExclusive)
	if _, err := linux.OpenRaw(handle(t, disk.Path), linux.RawExclusive); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a second claim: %v, want %v", err, unix.EBUSY)
	}
	block := linux.RawBuffer(1024)
	copy(block, "aligned")
	for offset, data := range map[int64][]byte{0: block, 4096: append([]byte("anywhere"), make([]byte, 504)...)} {
		n, err := device.WriteAt(data, offset)
		rig.Must(t, err)
		if got := rig.ReadAt(t, disk.Path, n, offset); n != len(data) || got != string(data) {
			t.Errorf("%d bytes of %d at %d, other than written", n, len(data), offset)
		}
	}
	rig.Must(t, device.Sync())
	for _, place := range []struct{ offset, length int }{{1, 512}, {0, 511}} {
		if _, err := device.WriteAt(make([]byte, place.length), int64(place.offset)); err == nil {
			t.Errorf("%d bytes at %d were written", place.length, place.offset)
		}
	}
}

// What is in the page cache of others does not hide what the device has.
func TestRawReadsPastTheCache(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	cached := device(t, disk.Path)
	block := make([]byte, 512)
	if _, err := cached.ReadAt(block, 0); err != nil {
		t.Fatal(err)
	}
	backing, err := os.OpenFile(disk.Backing, os.O_RDWR, 0)
	rig.Must(t, err)
	defer backing.Close()
	_, err = backing.WriteAt([]byte("new"), 0)
	rig.Must(t, err)
	if _, err := raw(t, disk.Path, 0).ReadAt(block, 0); err != nil || string(block[:3]) != "new" {
		t.Errorf("got %q (%v)", block[:3], err)
	}
}

func TestZeroOutAndDiscard(t *testing.T) {
	for name, wipe := range map[string]func(linux.Descriptor, uint64, uint64) error{
		"zero out": linux.ZeroOut, "discard": linux.Discard, "secure discard": linux.SecureDiscard,
	} {
		t.Run(name, func(t *testing.T) {
			disk := rig.NewDisk(t, rig.MiB)
			rig.WriteAt(t, disk.Path, strings.Repeat("x", rig.MiB), 0)
			device := raw(t, disk.Path, linux.RawWrite)
			err := wipe(device, 8192, 4096)
			if errors.Is(err, unix.EOPNOTSUPP) && name != "zero out" {
				return // Loop devices cannot discard on each filesystem, and never securely.
			}
			rig.Must(t, err)
			got := make([]byte, rig.MiB)
			_, err = device.ReadAt(got, 0)
			rig.Must(t, err)
			if want := bytes.Repeat([]byte("x"), rig.MiB); !bytes.Equal(got[:8192], want[:8192]) || !bytes.Equal(got[12288:], want[12288:]) {
				t.Error("it reached beyond the range")
			}
			if !bytes.Equal(got[8192:12288], make([]byte, 4096)) {
				t.Error("the range does not read zero")
			}
			if err := wipe(raw(t, disk.Path, 0), 0, 4096); !errors.Is(err, unix.EBADF) {
				t.Errorf("of a descriptor for reading: %v, want %v", err, unix.EBADF)
			}
			if err := wipe(device, rig.MiB, 4096); !errors.Is(err, unix.EINVAL) {
				t.Errorf("behind the end: %v, want %v", err, unix.EINVAL)
			}
		})
	}
}
