package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Options say what a pool is made of.
type Options struct {
	// Directory is the directory of the pool, which is made if it is missing.
	Directory string
	// Capacity is the sum of the sizes of thick volumes and snapshots in bytes;
	// 0 stands for the filesystem less what New leaves free.
	Capacity uint64
	// Overcommit is how many times the capacity all volumes and snapshots may
	// promise together; thin ones may be part of it. At least 1.
	Overcommit float64
}

// Pool is one directory of volumes. Its methods may be called concurrently.
type Pool struct {
	name    string
	options Options
	// dir is the lock file in the directory.
	dir   *os.File
	sysfs blockdev.Sysfs
	loops *blockdev.Loops
	// reflink says that files can share their data until one is written to.
	reflink bool
	// busy are the volumes and snapshots that are being worked on.
	busy inflight.Names
	// making is what is being made: it outlives the call that asked for it.
	making singleflight.Group
	// space is held while space is promised or counted, and directories are renamed.
	space sync.Mutex
	// owed is for the health of thin volumes.
	owed owed
	// removing counts what is being removed in the background.
	removing sync.WaitGroup
	metric   *prometheus.Desc
}

// New opens the pool in a directory and removes what a crash left unfinished. The
// pool takes no more than the filesystem has to spare: where no capacity is
// given, a part of it is left free (see reserve). Errors: volume.ErrPrecondition
// where another process or pool uses the directory, it is none, or others than root can
// change it.
func New(ctx context.Context, name string, options Options, sysfs blockdev.Sysfs) (*Pool, error) {
	options.Overcommit = max(options.Overcommit, 1)
	p := &Pool{name: name, options: options, sysfs: sysfs, loops: blockdev.NewLoops(sysfs), metric: newMetric(name)}
	for _, dir := range []string{p.volumes(), p.snapshots(), p.work()} {
		if err := os.MkdirAll(dir, 0o700); errors.Is(err, syscall.ENOTDIR) || errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("%w: pool %s: directory %s, or a part of its path, is no directory: %w", volume.ErrPrecondition, name, options.Directory, err)
		} else if err != nil {
			return nil, fmt.Errorf("pool %s: make its directory: %w", name, err)
		}
		if err := linux.CheckTrusted(dir); err != nil {
			return nil, fmt.Errorf("%w: pool %s: its directory is not safe: %w", volume.ErrPrecondition, name, err)
		}
	}
	var err error
	if p.dir, err = os.OpenFile(filepath.Join(options.Directory, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	if err := p.start(ctx); err != nil {
		p.dir.Close() //nolint:errcheck,gosec // Nothing was written to it.
		return nil, err
	}
	return p, nil
}

func (p *Pool) start(ctx context.Context) error {
	if err := linux.Lock(p.dir); errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%w: pool %s: directory %s is used by another pool or process; each needs a directory of its own",
			volume.ErrPrecondition, p.name, p.options.Directory)
	} else if err != nil {
		return fmt.Errorf("pool %s: %w", p.name, err)
	}
	left, err := os.ReadDir(p.work())
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.name, err)
	}
	logger := klog.FromContext(ctx).WithValues("pool", p.name)
	for _, entry := range left {
		logger.Info("Removing what was unfinished when the plugin ended", "entry", entry.Name())
		p.remove(ctx, filepath.Join(p.work(), entry.Name()))
	}
	if p.reflink, err = p.canReflink(); err != nil {
		return fmt.Errorf("pool %s: %w", p.name, err)
	}
	logger.Info("Opened pool of files", "directory", p.options.Directory, "reflink", p.reflink)
	return nil
}

// Close ends the use of the directory, after what is being removed is gone. The
// devices of volumes stay.
func (p *Pool) Close() {
	p.removing.Wait()
	p.dir.Close() //nolint:errcheck,gosec // Nothing was written to it.
}

func (p *Pool) volumes() string   { return filepath.Join(p.options.Directory, "volumes") }
func (p *Pool) snapshots() string { return filepath.Join(p.options.Directory, "snapshots") }
func (p *Pool) work() string      { return filepath.Join(p.options.Directory, "work") }

func (p *Pool) volume(name string) entry   { return entry{filepath.Join(p.volumes(), name)} }
func (p *Pool) snapshot(name string) entry { return entry{filepath.Join(p.snapshots(), name)} }

// lockVolume keeps other calls for a volume away. Errors: volume.ErrAborted.
func (p *Pool) lockVolume(name string) (unlock func(), err error) {
	return p.busy.Lock("volume " + p.name + "/" + name)
}

// lockSource does the same for what a volume is a copy of.
func (p *Pool) lockSource(source volume.Source) (unlock func(), err error) {
	switch {
	case source.Volume != "":
		return p.lockVolume(source.Volume)
	case source.Snapshot != "":
		return p.busy.Lock("snapshot " + p.name + "/" + source.Snapshot)
	}
	return func() {}, nil
}

// once has an entry made where there is none, by work that outlives ctx: who asks again
// meanwhile waits for it too.
func (p *Pool) once(ctx context.Context, name string, place entry, work func(context.Context) error) error {
	done := p.making.DoChan(name, func() (any, error) {
		// Looked at here, as only one is here at a time.
		if _, _, err := place.read(); !errors.Is(err, volume.ErrNotFound) {
			return nil, nil // What is wrong with it, the caller finds too.
		}
		return nil, work(context.WithoutCancel(ctx))
	})
	select {
	case result := <-done:
		return result.Err
	case <-ctx.Done():
		return fmt.Errorf("%s is still being made, repeat the call: %w", name, ctx.Err())
	}
}
