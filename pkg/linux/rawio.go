package linux

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawAlignment is the alignment in memory of what is read and written past the
// page cache: no block device has logical blocks larger than a page but where the
// page is larger, and none asks for more than its block size (open(2), O_DIRECT).
const rawAlignment = 4096

// Raw is an open block device that is read and written past the page cache
// (O_DIRECT): what is read is what the device has, and nothing of it is kept.
// Its methods may be called concurrently.
type Raw struct {
	*File
	block int64
}

// RawMode says for what a device is opened.
type RawMode int

// The modes can be combined.
const (
	// RawWrite opens the device for writing, too.
	RawWrite RawMode = 1 << iota
	// RawExclusive claims it, see Reopen.
	RawExclusive
)

// OpenRaw opens the block device behind a handle. Errors: EBUSY with
// RawExclusive where the device is claimed.
func OpenRaw(handle Descriptor, mode RawMode) (*Raw, error) {
	flags := unix.O_RDONLY
	if mode&RawWrite != 0 {
		flags = unix.O_RDWR
	}
	if mode&RawExclusive != 0 {
		flags |= unix.O_EXCL
	}
	file, err := openAt(unix.AT_FDCWD, descriptorPath(handle), handle.Name(), flags|unix.O_DIRECT)
	if err != nil {
		return nil, err
	}
	block, err := LogicalBlockSize(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Raw{file, int64(block)}, nil
}

// BlockSize is LogicalBlockSize, as it was when the device was opened.
func (r *Raw) BlockSize() uint64 { return uint64(r.block) } //nolint:gosec // It has 32 bits.

// RawBuffer returns a buffer of zeros that is read into and written from without
// a copy.
func RawBuffer(length int) []byte {
	buffer := make([]byte, length+rawAlignment)
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(&buffer[0])) % rawAlignment); rest != 0 {
		skip = rawAlignment - rest
	}
	return buffer[skip : skip+length : skip+length]
}

// ReadAt reads from any place, as io.ReaderAt has it. Errors: ENODEV where the
// device has gone, which without this would look like its end.
func (r *Raw) ReadAt(data []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, &os.PathError{Op: "read", Path: r.name, Err: unix.EINVAL}
	}
	if r.aligned(data, offset) {
		return r.readBlocks(data, offset)
	}
	first := offset / r.block * r.block
	last := (offset + int64(len(data)) + r.block - 1) / r.block * r.block
	blocks := RawBuffer(int(last - first))
	n, err := r.readBlocks(blocks, first)
	n = max(0, min(n-int(offset-first), len(data)))
	copy(data, blocks[offset-first:][:n])
	if n == len(data) {
		return n, nil
	}
	return n, err
}

// readBlocks reads whole logical blocks into a buffer of RawBuffer.
func (r *Raw) readBlocks(blocks []byte, offset int64) (int, error) {
	for done := 0; done < len(blocks); {
		n, err := ignoringEINTR(func() (int, error) { return unix.Pread(r.fd, blocks[done:], offset+int64(done)) })
		if err != nil {
			return done, &os.PathError{Op: "read", Path: r.name, Err: err}
		}
		if n == 0 {
			if err := goneOr(r, io.EOF); !errors.Is(err, io.EOF) {
				return done, &os.PathError{Op: "read", Path: r.name, Err: err}
			}
			return done, io.EOF
		}
		done += n
	}
	return len(blocks), nil
}

// WriteAt writes whole logical blocks in one call, so that a process which is
// killed has written all or nothing. They are safe from a power failure after
// Sync. Errors: ENODEV where the device has gone.
func (r *Raw) WriteAt(data []byte, offset int64) (int, error) {
	if offset%r.block != 0 || int64(len(data))%r.block != 0 {
		return 0, fmt.Errorf("write %s: %d bytes at %d are not whole blocks of %d", r.name, len(data), offset, r.block)
	}
	blocks := data
	if !r.aligned(data, offset) {
		blocks = RawBuffer(len(data))
		copy(blocks, data)
	}
	n, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(r.fd, blocks, offset) })
	if err != nil {
		return 0, &os.PathError{Op: "write", Path: r.name, Err: goneOr(r, err)}
	}
	if n != len(data) {
		return n, &os.PathError{Op: "write", Path: r.name, Err: io.ErrShortWrite}
	}
	return n, nil
}

func (r *Raw) aligned(data []byte, offset int64) bool {
	return offset%r.block == 0 && int64(len(data))%r.block == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(data)))%rawAlignment == 0
}

// Sync has the device make durable what was written (fdatasync).
func (r *Raw) Sync() error {
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Fdatasync(r.fd) })
	if err != nil {
		return &os.PathError{Op: "fdatasync", Path: r.name, Err: err}
	}
	return nil
}
