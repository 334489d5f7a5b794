package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// What a process has open may lie on a filesystem that is dead (XFS that was shut down
// answers EIO), that is for another user's eyes only (FUSE: EACCES), or whose server hangs.
// None of that may keep the node's devices from being released, nor may a node of the device
// be hidden by it.
//
//   - No server is asked: what the kernel remembers of a file has its type.
//   - What is not answered is asked of the open file itself: only one of a block device tells
//     the number of its disk, whatever has become of the filesystem that its node is on.
//   - A mapping, or a descriptor of a thread's own, of a file of another user's FUSE is no
//     device where the filesystem is mounted with nodev, as fusermount does. Who may mount
//     otherwise may also remount.
//   - Each question has a time limit.

// answer is what is known of an open or mapped file.
type answer struct {
	node linux.FileID
	is   bool
	err  error
	// opened is closed once the answer is given, which may hang.
	opened *linux.File
}

// descriptor reports whether the process has the device open by a descriptor, and by which
// node. Errors: what could not be looked at, and may be the device.
func (s *search) descriptor(pid int, dir, name string) (linux.FileID, bool, error) {
	path := s.table.path(pid, dir+"fd/"+name)
	found := ask(s.table.peeks, path, func() answer { return s.peek(path) })
	if found.err != nil {
		found = ask(s.table.limit, path, func() answer { return s.askDescriptor(pid, dir, name, found.err) })
	}
	if found.err != nil || !found.is {
		return found.node, false, found.err
	}
	open, err := s.isOpen(pid, dir, name)
	return found.node, open, err
}

// mapping does the same for an area of its memory.
func (s *search) mapping(pid int, area string) (linux.FileID, bool, error) {
	path := s.table.path(pid, "map_files/"+area)
	found := ask(s.table.peeks, path, func() answer { return s.peek(path) })
	if found.err != nil {
		found = ask(s.table.limit, path, func() answer { return s.askMapping(path, found.err) })
	}
	return found.node, found.is, found.err
}

// ask returns the answer also where only the closing that follows it hangs.
func ask(limit *linux.Limit, what string, question func() answer) answer {
	got := make(chan answer, 1)
	_, err := limit.Do(what, func() {
		found := question()
		got <- found
		if found.opened != nil {
			found.opened.Close()
		}
	})
	select {
	case found := <-got:
		return found
	default:
		return answer{err: err}
	}
}

// peek looks at what a link of /proc leads to. One that is gone meanwhile is not the device.
func (s *search) peek(path string) answer {
	info, err := linux.PeekPath(path)
	if hasEnded(err) {
		return answer{}
	}
	return answer{node: info.ID, is: err == nil && info.IsBlockDevice() && info.Device == s.number, err: err}
}

// askDescriptor asks the open file of a descriptor. The one of a
// thread with descriptors of its own cannot be had.
func (s *search) askDescriptor(pid int, dir, name string, why error) answer {
	if dir != "" {
		return noDevice(s.table.path(pid, dir+"fd/"+name), why)
	}
	held, err := linux.OpenProcess(pid)
	if errors.Is(err, syscall.ESRCH) {
		return answer{}
	}
	if err != nil {
		return answer{err: why}
	}
	defer held.Close()
	number, err := strconv.Atoi(name)
	if err != nil {
		return answer{err: why}
	}
	file, err := held.Descriptor(number)
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EBADF) {
		return answer{}
	}
	if err != nil {
		return answer{err: fmt.Errorf("%w (%w)", why, err)}
	}
	if errors.Is(why, linux.ErrStuck) {
		// What the kernel remembers, now of the file itself.
		info, err := linux.Peek(file)
		return answer{info.ID, err == nil && info.IsBlockDevice() && info.Device == s.number, err, file}
	}
	found := s.askFile(file, why)
	found.opened = file
	return found
}

// askMapping opens a mapped file anew, as there is no descriptor of it. On a filesystem that
// is dead only nodes of devices can be opened.
func (s *search) askMapping(path string, why error) answer {
	if errors.Is(why, fs.ErrPermission) || errors.Is(why, linux.ErrStuck) {
		return noDevice(path, why)
	}
	file, err := linux.OpenWithoutWaiting(path)
	if errors.Is(err, fs.ErrPermission) {
		return answer{err: why}
	}
	if err != nil {
		return answer{}
	}
	defer file.Close()
	return s.askFile(file, why)
}

// askFile asks an open file for the number of its disk. Whatever a partition and its disk
// have in common counts for both.
func (s *search) askFile(file *linux.File, why error) answer {
	seq, err := linux.DiskSeq(file)
	if err == nil {
		return answer{is: s.seq == "" || strconv.FormatUint(seq, 10) == s.seq}
	}
	// Before Linux 5.15 the number is not told.
	if _, err := linux.BlockSize(file); err == nil {
		return answer{err: why}
	}
	return answer{}
}

// noDevice returns an error unless no device can be opened on the filesystem.
func noDevice(path string, why error) answer {
	handle, err := linux.OpenPath(path)
	if hasEnded(err) {
		return answer{}
	}
	if err != nil {
		return answer{err: why}
	}
	defer handle.Close()
	if flags, err := linux.FlagsOf(handle); err != nil || !flags.NoDevices {
		return answer{err: why}
	}
	return answer{}
}

// diskSeq returns the sequence number of the disk that a device is, or is a part of
// (Documentation/ABI/stable/sysfs-block in the kernel).
func diskSeq(number linux.DeviceNumber) string {
	dir := filepath.Join("/sys/dev/block", number.String())
	for _, path := range []string{dir + "/diskseq", dir + "/../diskseq"} {
		if text, err := os.ReadFile(path); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	return ""
}
