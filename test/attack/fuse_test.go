package attack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// fuse is a filesystem of the test's own with one file, whose server can stop answering
// (linux/fuse.h in the kernel).
type fuse struct {
	// folder is where it is mounted, file the path of its file.
	folder, file string
	device       int
	hangs, stops atomic.Bool
	ended        chan struct{}
}

const (
	fuseLookup   = 1
	fuseForget   = 2
	fuseGetattr  = 3
	fuseOpen     = 14
	fuseStatfs   = 17
	fuseRelease  = 18
	fuseFlush    = 25
	fuseInit     = 26
	fuseOpendir  = 27
	fuseInHeader = 40
	fuseRoot     = 1
	fuseFile     = 2
)

// newFuse mounts one where the test may: what others open there is theirs to close.
func newFuse(t *testing.T) *fuse {
	t.Helper()
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) && os.Getenv("CI") == "" {
		t.Skip("SKIPPED: there is no /dev/fuse")
	}
	rig.Must(t, err)
	f := &fuse{folder: reachable(t), device: device, ended: make(chan struct{})}
	f.file = f.folder + "/file"
	rig.Must(t, unix.Mount("rawblock-test", f.folder, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device)))
	go f.serve()
	t.Cleanup(func() {
		rig.Must(t, unix.Unmount(f.folder, unix.MNT_DETACH))
		f.end()
	})
	return f
}

// hang has the server never answer again.
func (f *fuse) hang() { f.hangs.Store(true) }

// end ends the server, as if it were killed. It may be repeated.
func (f *fuse) end() {
	if !f.stops.Swap(true) {
		<-f.ended
		unix.Close(f.device) // Whoever waits for an answer is told that there is none.
	}
}

func (f *fuse) serve() {
	defer close(f.ended)
	buffer := make([]byte, 1<<17)
	for !f.stops.Load() {
		const wait = 50 // Milliseconds.
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(f.device), Events: unix.POLLIN}}, wait); n == 0 {
			continue
		}
		n, err := unix.Read(f.device, buffer)
		if errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil || n < fuseInHeader {
			return // It was ended, or unmounted.
		}
		if f.hangs.Load() {
			continue
		}
		opcode, unique, node := binary.LittleEndian.Uint32(buffer[4:]), buffer[8:16], binary.LittleEndian.Uint64(buffer[16:])
		if opcode == fuseForget {
			continue
		}
		body, errno := answerOf(opcode, node)
		answer := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
		answer = binary.LittleEndian.AppendUint32(answer, uint32(-int32(errno)))
		answer = append(append(answer, unique...), body...)
		unix.Write(f.device, answer) // Whoever asked may be gone.
	}
}

// answerOf returns the body of an answer.
func answerOf(opcode uint32, node uint64) ([]byte, syscall.Errno) {
	put64, put32 := binary.LittleEndian.AppendUint64, binary.LittleEndian.AppendUint32
	switch opcode {
	case fuseInit:
		body := put32(put32(nil, 7), 31) // The version of the protocol.
		body = put32(put32(body, 0), 0)
		return append(put32(put32(body, 0), 1<<16), make([]byte, 64-24)...), 0
	case fuseGetattr:
		return append(make([]byte, 16), fuseAttributes(node)...), 0 // Not to be remembered.
	case fuseLookup:
		return append(put64(put64(nil, fuseFile), 1), append(make([]byte, 24), fuseAttributes(fuseFile)...)...), 0
	case fuseOpen, fuseOpendir:
		return make([]byte, 16), 0
	case fuseStatfs:
		return make([]byte, 80), 0
	case fuseRelease, fuseFlush:
		return nil, 0
	default:
		return nil, syscall.ENOSYS
	}
}

// fuseAttributes returns struct fuse_attr.
func fuseAttributes(node uint64) []byte {
	mode := uint32(unix.S_IFREG | 0o666)
	if node == fuseRoot {
		mode = unix.S_IFDIR | 0o777
	}
	body := binary.LittleEndian.AppendUint64(nil, node)
	body = append(body, make([]byte, 8*5+4*3)...)
	body = binary.LittleEndian.AppendUint32(body, mode)
	body = binary.LittleEndian.AppendUint32(body, 1)
	return append(body, make([]byte, 88-len(body))...)
}
