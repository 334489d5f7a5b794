package rig

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Writer stands for the program in a pod: it opens what is published, and writes
// and reads back, past the page cache, until it is stopped or something fails.
type Writer struct {
	file *os.File
	stop func()
	done chan struct{}

	mu    sync.Mutex
	count int
	err   error
}

// writeFrom is where a Writer writes: what is before that is the test's.
const writeFrom = MiB

// StartWriter starts to write to a device, of which it uses the second MiB.
func StartWriter(t *testing.T, path string) *Writer {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	Must(t, err)
	ending := make(chan struct{})
	w := &Writer{file: file, done: make(chan struct{}), stop: sync.OnceFunc(func() { close(ending) })}
	go w.run(ending)
	t.Cleanup(func() { w.Close() })
	w.WaitForMore(t)
	return w
}

func (w *Writer) run(ending <-chan struct{}) {
	defer close(w.done)
	block, back := linux.RawBuffer(4096), linux.RawBuffer(4096)
	for number := uint64(1); ; number++ {
		binary.LittleEndian.PutUint64(block, number)
		offset := writeFrom + int64(number%64)*4096
		err := w.exchange(block, back, offset)
		w.mu.Lock()
		w.count++
		w.err = err
		w.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-ending:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func (w *Writer) exchange(block, back []byte, offset int64) error {
	fd := int(w.file.Fd())
	if _, err := unix.Pwrite(fd, block, offset); err != nil {
		return os.NewSyscallError("pwrite", err)
	}
	n, err := unix.Pread(fd, back, offset)
	switch {
	case err != nil:
		return os.NewSyscallError("pread", err)
	case n == 0:
		return errNothingRead
	case string(back) != string(block):
		return errors.New("other data was read back than was written")
	}
	return nil
}

// errNothingRead is how a read past the page cache ends of a disk that has gone.
var errNothingRead = errors.New("pread returned 0 bytes and no error")

func (w *Writer) state() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count, w.err
}

// WaitForMore waits until it has written once more, and fails the test where it
// cannot.
func (w *Writer) WaitForMore(t *testing.T) {
	t.Helper()
	before, _ := w.state()
	for end := time.Now().Add(writerLimit); ; time.Sleep(time.Millisecond) {
		count, err := w.state()
		Must(t, err)
		if count > before {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the pod does not write any more")
		}
	}
}

// WaitForError waits until something fails, and returns it.
func (w *Writer) WaitForError(t *testing.T) error {
	t.Helper()
	for end := time.Now().Add(writerLimit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := w.state(); err != nil {
			return err
		}
	}
	t.Fatal("the pod goes on writing")
	return nil
}

// writerLimit is far more than a slow machine takes for a write.
const writerLimit = 3 * time.Minute

// Close ends the pod.
func (w *Writer) Close() {
	w.stop()
	<-w.done
	w.file.Close()
}
