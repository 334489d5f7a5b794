package attack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// fuse is a filesystem of the test's own with one file, whose server can stop answering
// (linux/fuse.h in the kernel). The server is a process of its own: a test that is killed
// while it waits for itself would never end, nor would anything that waits for its files.
type fuse struct {
	// dir is where it is mounted, file the path of its file.
	dir, file string
	server    *exec.Cmd
	// A byte to orders has the server hang. From then on one comes from said, and one more
	// for each question.
	orders io.Writer
	said   io.Reader
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
	return newFuseAt(t, reachable(t))
}

// newFuseAt does so in a directory that is there.
func newFuseAt(t *testing.T, dir string) *fuse {
	t.Helper()
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) && os.Getenv("CI") == "" {
		t.Skip("SKIPPED: there is no /dev/fuse")
	}
	rig.Must(t, err)
	defer device.Close()
	rig.Must(t, unix.Mount("rawblock-test", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device.Fd())))
	t.Cleanup(func() { rig.Must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	f := &fuse{dir: dir, file: dir + "/file", server: exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])}
	f.server.Env = append(os.Environ(), fuseVariable+"=1")
	f.server.ExtraFiles = []*os.File{device}
	f.orders, err = f.server.StdinPipe()
	rig.Must(t, err)
	f.said, err = f.server.StdoutPipe()
	rig.Must(t, err)
	rig.Must(t, f.server.Start())
	t.Cleanup(f.end)
	return f
}

// hang has the server never answer again.
func (f *fuse) hang(t *testing.T) {
	t.Helper()
	_, err := f.orders.Write([]byte{0})
	rig.Must(t, err)
	f.hear(t)
}

// hear waits until the server hangs, or then is asked once more.
func (f *fuse) hear(t *testing.T) {
	t.Helper()
	_, err := f.said.Read(make([]byte, 1))
	rig.Must(t, err)
}

// end kills the server: whoever waits for an answer is told that there is none. It may be
// repeated.
func (f *fuse) end() {
	f.server.Process.Kill()
	f.server.Wait() // It was killed.
}

// fuseVariable has the test's program be the server, of descriptor 3.
const fuseVariable = "RAWBLOCK_TEST_FUSE"

// serveFuse answers until it is told to hang, and then goes away by itself after a while:
// who started it may have been killed, and cannot end before the server does.
func serveFuse() int {
	const device, longest = 3, 5 * time.Minute
	hangs, buffer := false, make([]byte, 1<<17)
	for {
		orders := []unix.PollFd{{Fd: device, Events: unix.POLLIN}, {Fd: 0, Events: unix.POLLIN}}
		if hangs {
			orders = orders[:1]
		}
		if _, err := unix.Poll(orders, -1); errors.Is(err, syscall.EINTR) {
			continue
		}
		if !hangs && orders[1].Revents != 0 { // Also where nobody is left who could order it.
			hangs = true
			time.AfterFunc(longest, func() { os.Exit(1) })
			os.Stdout.Write([]byte{0})
			continue
		}
		n, err := unix.Read(device, buffer)
		if errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil || n < fuseInHeader {
			return 0 // It was unmounted.
		}
		if hangs {
			os.Stdout.Write([]byte{0})
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
		unix.Write(device, answer) // Whoever asked may be gone.
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
	body = binary.LittleEndian.AppendUint64(body, volumeSize)
	body = append(body, make([]byte, 8*4+4*3)...)
	body = binary.LittleEndian.AppendUint32(body, mode)
	body = binary.LittleEndian.AppendUint32(body, 1)
	return append(body, make([]byte, 88-len(body))...)
}
