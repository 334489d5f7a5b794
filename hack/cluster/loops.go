package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clearLoops takes away the loop devices on a node's disk: the disk's own, those of
// files on it, and those of such devices. They are told by device and inode
// numbers: the paths in /sys are of mounts that are gone, and alike on all nodes.
func clearLoops(ctx context.Context, disk string) error {
	var stat unix.Stat_t
	err := unix.Stat(disk, &stat)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stat %s: %w", disk, err)
	}
	return until(ctx, "no loop device is left on "+disk, 30*time.Second, func() error {
		left, err := clearOnce(stat)
		if err == nil && left > 0 {
			err = fmt.Errorf("there are %d", left)
		}
		return err
	})
}

// clearOnce tells how many it found.
func clearOnce(disk unix.Stat_t) (int, error) {
	open, err := openLoops(disk)
	defer func() {
		for _, loop := range open {
			loop.file.Close()
		}
	}()
	if err != nil {
		return 0, err
	}
	ours := map[uint64]bool{}
	for found := true; found; {
		found = false
		for _, loop := range open {
			on := loop.Device == disk.Dev && loop.Inode == disk.Ino || ours[loop.Device] || ours[loop.Rdevice]
			if on && !ours[loop.number] {
				ours[loop.number], found = true, true
			}
		}
	}
	var errs []error
	for _, loop := range open {
		if ours[loop.number] {
			// The kernel does it when the last one closes the device (LOOP_CLR_FD).
			errs = append(errs, os.NewSyscallError("ioctl LOOP_CLR_FD", unix.IoctlSetInt(int(loop.file.Fd()), unix.LOOP_CLR_FD, 0)))
		}
	}
	return len(ours), errors.Join(errs...)
}

// openLoop is a loop device that cannot get another backing file, as it is open.
type openLoop struct {
	unix.LoopInfo64
	file   *os.File
	number uint64
}

// openLoops opens the loop devices that have a backing file, but for those of the
// host's own files: whoever opens a device keeps others from detaching it.
func openLoops(disk unix.Stat_t) ([]openLoop, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var loops []openLoop
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil || isHosts(strings.TrimSpace(string(backing)), disk) {
			continue
		}
		loop, err := openOne("/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file))))
		// It has just lost its file, or that is on a filesystem that is dead, as none of a node is.
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return loops, err
		}
		loops = append(loops, loop)
	}
	return loops, nil
}

// isHosts says whether a file is where a path says, on the host, and is not a
// node's disk. What is on that disk has paths that only lead there on the node.
func isHosts(path string, disk unix.Stat_t) bool {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return false
	}
	return stat.Mode&unix.S_IFMT == unix.S_IFREG && (stat.Dev != disk.Dev || stat.Ino != disk.Ino)
}

func openOne(path string) (loop openLoop, err error) {
	file, err := os.Open(path)
	if err != nil {
		return openLoop{}, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	if err != nil {
		return openLoop{}, os.NewSyscallError("ioctl LOOP_GET_STATUS64", err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return openLoop{}, os.NewSyscallError("fstat", err)
	}
	return openLoop{*info, file, stat.Rdev}, nil
}
