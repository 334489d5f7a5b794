package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// The names of directories in work begin with one of these.
const (
	makeVolumePrefix   = "make-volume-"
	makeSnapshotPrefix = "make-snapshot-"
	gonePrefix         = "gone-"
)

// made says what is to be made: a volume or a snapshot.
type made struct {
	record
	size uint64
	// from is the entry whose data it begins with, if any.
	from *entry
	// snapshot says that nobody is to write to the data.
	snapshot bool
}

// build makes an entry in work and moves it to its place. Of what fails nothing
// is left.
func (p *Pool) build(ctx context.Context, what made, place entry) error {
	prefix := makeVolumePrefix
	if what.snapshot {
		prefix = makeSnapshotPrefix
	}
	dir, err := os.MkdirTemp(p.work(), prefix)
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	crashpoint.Here("directory made")
	e := entry{dir}
	err = e.write(what.record)
	if err == nil {
		crashpoint.Here("record written")
		err = p.fill(e, what)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err == nil {
		err = p.move(e, place.dir)
	}
	if err != nil {
		p.remove(ctx, dir)
	}
	return err
}

// move gives an entry another directory, durably. Nobody counts what is promised
// meanwhile: it would be missed in one directory and in the other.
func (p *Pool) move(e entry, dir string) error {
	p.space.Lock()
	err := os.Rename(e.dir, dir)
	p.space.Unlock()
	if err != nil {
		return err
	}
	crashpoint.Here("directory renamed")
	return errors.Join(syncDir(filepath.Dir(dir)), syncDir(filepath.Dir(e.dir)))
}

// fill makes the data of an entry.
func (p *Pool) fill(e entry, what made) (err error) {
	data, err := os.OpenFile(e.data(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make data: %w", err)
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	if err := linux.KeepInPlace(data); err != nil {
		return err
	}
	if err := p.promise(data, what); err != nil {
		return err
	}
	crashpoint.Here("space taken")
	if what.from != nil && !p.reflink {
		if err := what.from.copyTo(data); err != nil {
			return p.spaceError(err)
		}
	}
	if what.snapshot {
		if err := data.Chmod(0o400); err != nil {
			return err
		}
	}
	if err := data.Sync(); err != nil {
		return p.spaceError(err)
	}
	crashpoint.Here("data synced")
	return nil
}

// promise takes the space of an entry, if the pool has it. Where it shares blocks
// it is looked at once more when it is there: how many cannot be foretold.
func (p *Pool) promise(data *os.File, what made) error {
	p.space.Lock()
	defer p.space.Unlock()
	if err := p.require(what.size, what.size, what.Thin); err != nil {
		return err
	}
	if what.from != nil && p.reflink {
		if err := what.from.cloneTo(data); err != nil {
			return p.spaceError(err)
		}
	}
	if err := p.resize(data, what.size, what.Thin); err != nil {
		return err
	}
	if what.from == nil || !p.reflink {
		return nil
	}
	return p.check(what.Thin)
}

// resize makes data longer, or leaves it as it is.
func (p *Pool) resize(data linux.Descriptor, size uint64, thin bool) error {
	if thin {
		return p.spaceError(linux.Truncate(data, size))
	}
	return p.spaceError(linux.Allocate(data, size))
}

func (e entry) cloneTo(data *os.File) error {
	from, err := linux.OpenFile(e.data(), false)
	if err != nil {
		return err
	}
	defer from.Close()
	return linux.CloneFile(data, from)
}

// copyTo copies what is stored of the data, and leaves holes as they are.
func (e entry) copyTo(data *os.File) error {
	from, err := os.Open(e.data())
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // It is only read.
	for end := int64(0); ; {
		start, err := from.Seek(end, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return nil // Only a hole is left.
		}
		if err != nil {
			return err
		}
		if end, err = from.Seek(start, seekHole); err != nil {
			return err
		}
		if _, err := from.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := data.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(data, from, end-start); err != nil {
			return err
		}
	}
}

// lseek(2): the next data, or the next hole, from an offset.
const (
	seekData = 3
	seekHole = 4
)

// discard removes an entry durably. Its space is mostly free when it returns: a
// large file can take the filesystem many seconds, which nobody has to wait for.
func (p *Pool) discard(ctx context.Context, e entry) error {
	gone, err := os.MkdirTemp(p.work(), gonePrefix)
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	err = p.move(e, filepath.Join(gone, "entry"))
	select {
	case <-p.remove(ctx, gone):
	case <-time.After(removeWait):
	case <-ctx.Done():
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", e.dir, err)
	}
	return nil
}

// removeWait is far below the time that callers leave a call (10 s and more).
const removeWait = 2 * time.Second

// remove removes a directory in work. What the plugin leaves of it when it ends, it
// removes at its next start.
func (p *Pool) remove(ctx context.Context, dir string) (done <-chan struct{}) {
	removed := make(chan struct{})
	p.removing.Go(func() {
		defer close(removed)
		if err := os.RemoveAll(dir); err != nil {
			klog.FromContext(ctx).Error(err, "Cannot remove a directory; its space stays taken until the next start", "pool", p.name, "directory", dir)
		}
	})
	return removed
}

// canReflink tries whether files can share their data.
func (p *Pool) canReflink() (bool, error) {
	dir, err := os.MkdirTemp(p.work(), gonePrefix)
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // The next start tries again.
	files := make([]*os.File, 2)
	for i, name := range []string{"a", "b"} {
		if files[i], err = os.Create(filepath.Join(dir, name)); err != nil {
			return false, err
		}
		defer files[i].Close() //nolint:errcheck // They are removed.
	}
	if _, err := files[0].Write(make([]byte, sizeUnit)); err != nil {
		return false, p.spaceError(err)
	}
	return linux.CloneFile(files[1], files[0]) == nil, nil
}
