package machine_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

const size = 64 << 20

func TestDisks(t *testing.T) {
	for _, bus := range []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio} {
		t.Run(string(bus), func(t *testing.T) {
			disk := machine.Add(t, machine.Disk{Bus: bus, Size: size, Serial: "SERIAL-1", LogicalBlockSize: 4096})
			file := open(t, disk)
			if got, err := file.Seek(0, io.SeekEnd); err != nil || got != size {
				t.Fatalf("%s has %d bytes, %v", disk.Path, got, err)
			}
			block := aligned()
			copy(block, "hello")
			if _, err := unix.Pwrite(int(file.Fd()), block, 0); err != nil {
				t.Fatal(err)
			}
			if bus != machine.NVMe { // QEMU's has one size for life.
				disk.Resize(t, 2*size)
				// The kernel is told of it in a moment.
				for got := int64(0); got != 2*size; time.Sleep(time.Millisecond) {
					var err error
					if got, err = file.Seek(0, io.SeekEnd); err != nil || got != size && got != 2*size {
						t.Fatalf("%s has %d bytes after it grew, %v", disk.Path, got, err)
					}
				}
			}
			disk.Break(t)
			// NVMe calls it an error of the medium.
			if _, err := unix.Pread(int(file.Fd()), block, 0); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENODATA) {
				t.Errorf("a broken disk reads with %v", err)
			}
			disk.Mend(t)
			if n, err := unix.Pread(int(file.Fd()), block, 0); n != len(block) || err != nil || string(block[:5]) != "hello" {
				t.Errorf("a mended disk reads %d bytes, %q, %v", n, block[:5], err)
			}
			disk.Unplug(t)
			if _, err := os.Stat(disk.Path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the node of a disk that was pulled: %v", err)
			}
			if n, err := unix.Pread(int(file.Fd()), block, 0); n != 0 || err != nil {
				t.Logf("A disk that has gone reads %d bytes, %v.", n, err)
			}
			disk.Plug(t)
			again := open(t, disk)
			if n, err := unix.Pread(int(again.Fd()), block, 0); n != len(block) || err != nil || string(block[:5]) != "hello" {
				t.Errorf("a disk that came back reads %d bytes, %q, %v", n, block[:5], err)
			}
		})
	}
}

func TestHang(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: size})
	file := open(t, disk)
	disk.Hang(t)
	ended := make(chan error)
	go func() {
		// The first is let through.
		for range 2 {
			if _, err := unix.Pread(int(file.Fd()), aligned(), 0); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	for seen := 0; seen < 100; {
		inflight, err := os.ReadFile("/sys/block/" + disk.Name + "/inflight")
		if err != nil {
			t.Fatal(err)
		}
		if seen++; strings.Fields(string(inflight))[0] == "0" {
			seen = 0
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-ended:
		t.Fatalf("a hung disk was read: %v", err)
	default:
	}
	disk.Mend(t)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func open(t *testing.T, disk *machine.Plugged) *os.File {
	t.Helper()
	file, err := os.OpenFile(disk.Path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// aligned is a block that may be read and written without the page cache.
func aligned() []byte {
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return block
}
