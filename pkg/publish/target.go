package publish

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Target is a place where a volume is published.
type Target struct {
	// VolumeID is the volume's handle.
	VolumeID string
	// Path is where the device node goes: an absolute path whose folder exists.
	Path string
}

// place is an entry of an open folder, so that no link on the way to it can
// change between two steps.
type place struct {
	dir  *linux.File
	name string
}

func openPlace(path string) (place, error) {
	dir, err := linux.OpenDir(filepath.Dir(path))
	return place{dir, filepath.Base(path)}, err
}

func (p place) Close() { p.dir.Close() }

func (p place) path() string { return p.dir.Name() + "/" + p.name }

// stat tells what is there; there is nothing where found is false.
func (p place) stat() (info linux.FileInfo, found bool, err error) {
	info, err = linux.StatAt(p.dir, p.name)
	if errors.Is(err, fs.ErrNotExist) {
		return linux.FileInfo{}, false, nil
	}
	return info, err == nil, err
}

// isPublished reports whether a device node is mounted there.
func isPublished(info linux.FileInfo) bool { return info.MountRoot && info.IsBlockDevice() }

// isPlain reports whether there is the empty file that a device is mounted on.
func isPlain(info linux.FileInfo) bool { return !info.MountRoot && info.Type == 0 && info.Size == 0 }

// occupied says what is there that is not ours, and that it stays.
func (p place) occupied(info linux.FileInfo) error {
	what := linux.TypeName(info.Type)
	switch {
	case info.MountRoot:
		what = "a mount of " + what
	case info.Type == 0:
		what = fmt.Sprintf("a regular file of %d bytes", info.Size)
	}
	return fmt.Errorf("%w: at target_path %s there is %s that this driver did not make; it was left as it is, move it away",
		volume.ErrPrecondition, p.path(), what)
}

// noFolder reports whether an error says that the folder on the way is missing.
func noFolder(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
