package linux

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrUntrusted says that others than root and the caller can change a file or directory.
var ErrUntrusted = errors.New("others can change it")

// CheckTrusted returns an error unless root and the caller alone can change what is at a
// path, or put something else there. The owner counts, and who may write: the group, unless
// it is root's, and all others. On the way to it, a directory that all may write to is trusted
// if it is sticky, as /tmp is: there nobody takes away what another one owns. Links on the way
// are followed, and checked too.
//
// It is for what is opened when a program starts. Errors: ErrUntrusted, with the remedy.
func CheckTrusted(path string) error {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if err := checkWriters("/", absolute != "/"); err != nil {
		return err
	}
	at, rest := "/", split(absolute)
	for links := 0; len(rest) > 0; {
		name := filepath.Join(at, rest[0])
		rest = rest[1:]
		if err := checkWriters(name, len(rest) > 0); err != nil {
			return err
		}
		target, err := os.Readlink(name)
		if errors.Is(err, unix.EINVAL) { // It is no link.
			at = name
			continue
		}
		if links++; err == nil && links > maxLinks {
			err = &os.PathError{Op: "resolve", Path: path, Err: unix.ELOOP}
		}
		if err != nil {
			return err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(split(target), rest...)
	}
	return nil
}

// maxLinks is how many links the kernel follows on the way to a file (path_resolution(7)).
const maxLinks = 40

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func checkWriters(path string, above bool) error {
	var info unix.Stat_t
	if err := unix.Lstat(path, &info); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if info.Mode&unix.S_IFMT == unix.S_IFLNK || above && info.Mode&unix.S_ISVTX != 0 {
		return checkOwner(path, info) // Nobody writes to a link.
	}
	return errors.Join(checkOwner(path, info), checkMode(path, info))
}

func checkOwner(path string, info unix.Stat_t) error {
	if info.Uid == 0 || int(info.Uid) == os.Geteuid() {
		return nil
	}
	return fmt.Errorf("%s belongs to user %d: %w; give it to root (chown root:root %s)", path, info.Uid, ErrUntrusted, path)
}

func checkMode(path string, info unix.Stat_t) error {
	if info.Mode&unix.S_IWOTH == 0 && (info.Mode&unix.S_IWGRP == 0 || info.Gid == 0) {
		return nil
	}
	return fmt.Errorf("%s has mode %04o: %w; take that away (chmod go-w %s)", path, info.Mode&0o7777, ErrUntrusted, path)
}

// ReadTrusted reads a file that root and the caller alone can change. Where it lies is not
// looked at: the directory of a ConfigMap in a container can be written to by all of its
// processes. Errors: ErrUntrusted, with the remedy.
func ReadTrusted(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // Nothing was written.
	if err := CheckTrustedFile(file); err != nil {
		return nil, err
	}
	return io.ReadAll(file)
}

// CheckTrustedFile returns an error unless root and the caller alone can change an open
// file. Errors: ErrUntrusted, with the remedy.
func CheckTrustedFile(file Descriptor) error {
	var info unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &info); err != nil {
		return &os.PathError{Op: "fstat", Path: file.Name(), Err: err}
	}
	return errors.Join(checkOwner(file.Name(), info), checkMode(file.Name(), info))
}
