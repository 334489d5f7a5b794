package publish

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Target is a place where a volume is published.
type Target struct {
	// VolumeID is the volume's handle.
	VolumeID string
	// Path is where the device node goes: an absolute path whose directory exists.
	Path string
}

// place is an entry of an open directory, so that no link on the way to it can
// change between two steps.
type place struct {
	dir  *linux.File
	name string
}

// openPlace opens the directory of a target. Below the kubelet directory no link is
// followed, whoever made it and whenever: it would lead a publish elsewhere.
// Errors: volume.ErrPrecondition for a link.
func (r roots) openPlace(path string) (place, error) {
	parent, name := filepath.Split(path)
	for _, root := range r {
		rest, ok := strings.CutPrefix(parent, root.path)
		if !ok {
			continue
		}
		dir, err := linux.OpenDirBelow(root.dir, "/"+rest)
		if errors.Is(err, syscall.ELOOP) {
			err = fmt.Errorf("%w: there is a symbolic link on the way to %s, and none is followed below the kubelet directory; remove it, or mount the directory there instead: %w",
				volume.ErrPrecondition, path, err)
		}
		return place{dir, name}, err
	}
	dir, err := linux.OpenDir(parent)
	return place{dir, name}, err
}

// roots are the names of the kubelet directory; none where targets are only looked at without a plugin.
type roots []root

// root is a path of the kubelet directory, which ends with a slash, and the directory.
type root struct {
	path string
	dir  *linux.File
}

// Confine has targets below a directory, which is kubelet's, be opened without following
// links. The directory itself may be a link: that is resolved now, once. It is kept
// open until release, which is called once no call is under way. Confine is called before
// all else, and not concurrently. Errors: what opening the directory says.
func (p *Publisher) Confine(path string) (release func(), err error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("resolve the kubelet directory; make it, or set --kubelet-dir to kubelet's --root-dir: %w", err)
	}
	dir, err := linux.OpenDir(resolved)
	if err != nil {
		return nil, fmt.Errorf("open the kubelet directory: %w", err)
	}
	p.roots = nil
	for _, name := range []string{filepath.Clean(path), resolved} {
		p.roots = append(p.roots, root{strings.TrimSuffix(name, "/") + "/", dir})
	}
	return dir.Close, nil
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

// noDir reports whether an error says that the directory on the way is missing.
func noDir(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
