package file

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// reserve is the part of the filesystem, in percent, that a pool without a
// configured capacity leaves free: kubelet begins to evict pods where less than
// 10 % are (nodefs.available), and the pool's filesystem may be the node's.
const reserve = 15

// overhead is what a filesystem may need for itself beside the data of a volume,
// in bytes: its directory, record and list of extents. It is kept back from what is
// offered, and not from what is asked for.
const overhead = 1 << 20

// usage is what has been promised.
type usage struct {
	// thick and all are the sums of the sizes of thick entries, and of all.
	thick, all uint64
	// owed is what thick volumes can still take from the filesystem: what is not
	// stored yet, and what is stored once for several, which a write ends.
	owed uint64
}

// usage looks at all there is, also at what is being made. The caller holds space.
func (p *Pool) usage() (usage, error) {
	var sum usage
	for _, dir := range []string{p.volumes(), p.snapshots(), p.work()} {
		names, err := list(dir)
		if err != nil {
			return usage{}, err
		}
		for _, name := range names {
			if strings.HasPrefix(name, gonePrefix) && dir == p.work() {
				continue // Being removed: promised to nobody.
			}
			snapshot := dir == p.snapshots() || dir == p.work() && strings.HasPrefix(name, makeSnapshotPrefix)
			if err := p.add(&sum, entry{filepath.Join(dir, name)}, snapshot); err != nil {
				return usage{}, err
			}
		}
	}
	return sum, nil
}

func (p *Pool) add(sum *usage, e entry, snapshot bool) error {
	info, err := e.stat()
	if errors.Is(err, os.ErrNotExist) {
		return nil // It has gone meanwhile.
	}
	if err != nil {
		return err
	}
	sum.all += info.Size
	// One whose record cannot be read is counted as if it were thick.
	if r, _, err := e.read(); err == nil && r.Thin {
		return nil
	}
	sum.thick += info.Size
	if snapshot {
		return nil // Nobody writes to it.
	}
	sum.owed += less(info.Size, info.Allocated)
	if !p.reflink {
		return nil
	}
	data, err := linux.OpenFile(e.data(), false)
	if err != nil {
		return ignoreMissing(err)
	}
	defer data.Close()
	shared, err := linux.SharedSize(data)
	if err != nil {
		return fmt.Errorf("see what %s shares: %w", e.dir, err)
	}
	sum.owed += shared
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// limits are what a pool may promise, in bytes.
type limits struct {
	// thick and all bound the fields of usage with their names.
	thick, all uint64
	// free is what the filesystem can give.
	free uint64
}

func (p *Pool) limits() (limits, error) {
	free, total, err := linux.FreeSpace(p.dir)
	if err != nil {
		return limits{}, err
	}
	l := limits{thick: p.options.Capacity, free: free}
	if l.thick == 0 {
		spare := total / 100 * reserve
		l.thick, l.free = total-spare, less(free, spare)
	}
	l.all = uint64(math.Min(float64(l.thick)*p.options.Overcommit, math.MaxInt64))
	return l, nil
}

// less returns a - b, or 0 where b is more.
func less(a, b uint64) uint64 { return a - min(a, b) }

// left returns how much more can be promised, a multiple of sizeUnit.
func (l limits) left(u usage, thin bool) uint64 {
	left := less(l.all, u.all)
	if !thin {
		left = min(left, less(l.thick, u.thick), less(l.free, u.owed))
	}
	return left / sizeUnit * sizeUnit
}

// check returns an error where more was promised than can be had. Errors:
// volume.ErrExhausted.
func (p *Pool) check(thin bool) error {
	u, err := p.usage()
	if err != nil {
		return err
	}
	l, err := p.limits()
	if err != nil {
		return err
	}
	if u.all > l.all || !thin && (u.thick > l.thick || u.owed > l.free) {
		return p.exhausted(l.left(u, thin))
	}
	return nil
}

// require returns an error unless a volume of a size, which takes so many bytes
// more than now, can be promised.
func (p *Pool) require(size, more uint64, thin bool) error {
	u, err := p.usage()
	if err != nil {
		return err
	}
	l, err := p.limits()
	if err != nil {
		return err
	}
	most := l.thick
	if thin {
		most = l.all
	}
	if size > most {
		return fmt.Errorf("%w: %d bytes are more than pool %s can hold when it is empty, %d", volume.ErrOutOfRange, size, p.name, most)
	}
	if left := l.left(u, thin); more > left {
		return fmt.Errorf("%w, not %d", p.exhausted(left), more)
	}
	return nil
}

func (p *Pool) exhausted(left uint64) error {
	return fmt.Errorf("%w: pool %s in %s has %d bytes left on this node", volume.ErrExhausted, p.name, p.options.Directory, left)
}

// spaceError gives an error of the filesystem its meaning.
func (p *Pool) spaceError(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: the filesystem of pool %s, in %s, is full: %w", volume.ErrExhausted, p.name, p.options.Directory, err)
	case errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("%w: the filesystem of pool %s, in %s, cannot hold a file of this size: %w", volume.ErrOutOfRange, p.name, p.options.Directory, err)
	case errors.Is(err, syscall.EOPNOTSUPP):
		return fmt.Errorf(`%w: the filesystem of pool %s, in %s, cannot reserve space; use thin: "true", or another filesystem: %w`,
			volume.ErrPrecondition, p.name, p.options.Directory, err)
	}
	return err
}

// isDead reports whether nothing can be made any more: the filesystem is read-only, as
// many make themselves after an error, or its disk has gone, of which it tells the free
// space all the same.
func (p *Pool) isDead() (bool, error) {
	readOnly, err := linux.IsReadOnly(p.dir)
	if err != nil || readOnly {
		return readOnly, err
	}
	info, err := linux.Stat(p.dir)
	if err != nil {
		return false, err
	}
	if info.ID.Device.Major == 0 {
		return false, nil // It is on no block device, or, as btrfs, does not say on which.
	}
	_, err = p.sysfs.NodePath(info.ID.Device)
	if errors.Is(err, volume.ErrNotFound) {
		return true, nil
	}
	return false, err
}

// Capacity returns what can be made with the parameters: nothing where the filesystem
// can no longer be written to.
func (p *Pool) Capacity(_ context.Context, values map[string]string) (volume.Capacity, error) {
	parameters, err := parseParameters(values)
	if err != nil {
		return volume.Capacity{}, err
	}
	if dead, err := p.isDead(); err != nil || dead {
		return volume.Capacity{}, err
	}
	p.space.Lock()
	defer p.space.Unlock()
	u, err := p.usage()
	if err != nil {
		return volume.Capacity{}, err
	}
	l, err := p.limits()
	if err != nil {
		return volume.Capacity{}, err
	}
	l.free = less(l.free, overhead)
	left := l.left(u, parameters.thin)
	return volume.Capacity{Available: left, MaxVolume: left, MinVolume: sizeUnit}, nil
}
