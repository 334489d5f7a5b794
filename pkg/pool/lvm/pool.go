package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Options say what a pool is made of.
type Options struct {
	// VolumeGroup is the name of the volume group, which an administrator makes.
	VolumeGroup string
	// UUID is that of the volume group; empty: the only one of the name is meant.
	UUID string
	// ThinPool is the name of a thin pool in it; empty: volumes are thick.
	ThinPool string
	// Overcommit is how many times the size of the thin pool all of its volumes and
	// snapshots may promise together; at least 1.
	Overcommit float64
	// Wipe is the wipe of thick volumes whose StorageClass does not say: discard, zero
	// or secure; empty: discard.
	Wipe string
	// step is how many bytes are wiped before that is recorded; 0: wipeStep.
	step uint64
}

const (
	// lookInterval is how often the pool looks at its volume group when nobody asks.
	lookInterval = 30 * time.Second
	// commandTimeout is how long a command of lvm may take. Who waits for a disk that
	// does not answer waits no longer.
	commandTimeout = 5 * time.Minute
)

// Pool is the volumes of one volume group, or of one thin pool of it (ThinPool). Its
// methods may be called concurrently.
type Pool struct {
	name    string
	options Options
	wipe    wipe
	lvm     *lvm.LVM
	sysfs   blockdev.Sysfs
	logger  klog.Logger
	metrics metrics
	// turn has room for the one call that changes the volume group.
	turn chan struct{}
	// busy are the volumes and snapshots that are being worked on.
	busy inflight.Names
	// making is what is being made: it outlives the call that asked for it.
	making singleflight.Group
	// background ends when the pool is closed, by stop; workers are what runs in it.
	background context.Context //nolint:containedctx // It is that of goroutines, which no call starts.
	stop       context.CancelFunc
	workers    sync.WaitGroup

	mu sync.Mutex
	// unfinished are the names of logical volumes that a call of this process makes.
	unfinished map[string]struct{}
	// known are the volumes that were activated last, by their names.
	known map[string]active
	// wiping is what is to be wiped, by the UUID of the logical volume; wiper says that
	// somebody does.
	wiping map[string]*progress
	wiper  bool
	// twins are the devices with another volume group of the name.
	twins map[string]bool
	// status is what was seen last.
	status Status
}

// New opens a pool; NewThin opens one that has a thin pool. A volume group that is not
// there, or cannot be used, is no error: its disks may come later, and calls say so
// until then. Errors: volume.ErrInvalid for an option.
func New(ctx context.Context, name string, options Options, programs lvm.Programs, sysfs blockdev.Sysfs) (*Pool, error) {
	p, err := newPool(klog.FromContext(ctx), name, options, programs, sysfs)
	if err != nil {
		return nil, err
	}
	p.background, p.stop = context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), p.logger))
	p.workers.Go(p.watch) // Nobody waits for a disk that does not answer.
	return p, nil
}

// newPool returns a pool that does nothing by itself.
func newPool(logger klog.Logger, name string, options Options, programs lvm.Programs, sysfs blockdev.Sysfs) (*Pool, error) {
	if err := lvm.CheckName(options.VolumeGroup); err != nil {
		return nil, fmt.Errorf("volume group: %w", err)
	}
	if options.UUID != "" {
		if err := lvm.CheckUUID(options.UUID); err != nil {
			return nil, fmt.Errorf("UUID of volume group: %w", err)
		}
	}
	wipe, err := parseWipe(cmp.Or(options.Wipe, wipeDiscard.String()))
	if err == nil && wipe == wipeNone {
		err = fmt.Errorf("%w: %s %s is for a StorageClass", volume.ErrInvalid, WipeParameter, wipe)
	}
	if err != nil {
		return nil, err
	}
	options.Overcommit = max(options.Overcommit, 1)
	options.step = cmp.Or(options.step, wipeStep)
	p := &Pool{
		name: name, options: options, wipe: wipe, sysfs: sysfs, metrics: newMetrics(name),
		logger: logger.WithValues("pool", name, "volumeGroup", options.VolumeGroup), turn: make(chan struct{}, 1),
		unfinished: map[string]struct{}{}, known: map[string]active{}, wiping: map[string]*progress{},
	}
	p.lvm = lvm.New(programs, p.devices)
	return p, nil
}

// Close ends what the pool does in the background; the next New goes on with it. The
// devices of volumes stay.
func (p *Pool) Close() {
	p.stop()
	p.workers.Wait()
}

// watch looks at the volume group now and from time to time.
func (p *Pool) watch() {
	for p.background.Err() == nil {
		p.tend()
		wait(p.background, lookInterval)
	}
}

func wait(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// tend goes on with what was left undone. What is wrong the log says, once.
func (p *Pool) tend() {
	err := p.change(p.background, func(ctx context.Context, g group) error {
		if p.options.ThinPool == "" {
			return nil
		}
		_, err := p.thinPool(ctx, &g)
		return err
	})
	if p.background.Err() == nil {
		p.note(err)
	}
}

// inTurn has work done that others of this pool must not come between. It is not cut
// off with ctx: lvm would be, in the middle of a change.
func (p *Pool) inTurn(ctx context.Context, work func(context.Context) error) error {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for other changes of volume group %s: %w", p.options.VolumeGroup, context.Cause(ctx))
	}
	defer func() { <-p.turn }()
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTimeout)
	defer cancel()
	return work(limited)
}

// change has work done that changes the volume group, as it is now. What was left
// undone by a process that died is done first.
func (p *Pool) change(ctx context.Context, work func(context.Context, group) error) error {
	return p.inTurn(ctx, func(ctx context.Context) error {
		g, err := p.look(ctx)
		if err != nil {
			return err
		}
		if err := g.check(); err != nil {
			return unusable(err)
		}
		if err := p.clear(ctx, &g); err != nil {
			return err
		}
		return work(ctx, g)
	})
}

// clear removes what a process that died has left unfinished, and has what is to be
// wiped wiped.
func (p *Pool) clear(ctx context.Context, g *group) error {
	whole := g.entries[:0]
	for _, e := range g.entries {
		switch {
		case e.err != nil:
		case e.making && p.isUnfinished(e.Name):
		case e.making:
			p.logger.Info("Removing what was unfinished when the plugin ended", "logicalVolume", e.Name)
			if err := p.remove(ctx, g.Group, e); err != nil {
				return err
			}
			g.Free += e.Size
			continue
		case e.kind == spaceKind:
			p.addWiping(e)
		}
		whole = append(whole, e)
	}
	g.entries = whole
	p.startWiper(g.Group)
	return nil
}

// begin says that this process makes a logical volume, until it calls the function
// that is returned.
func (p *Pool) begin(name string) (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unfinished[name] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.unfinished, name)
	}
}

func (p *Pool) isUnfinished(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, unfinished := p.unfinished[name]
	return unfinished
}

// once has work done that outlives ctx, and ends with the pool, between two of its
// steps: who asks again meanwhile waits for it too.
func (p *Pool) once(ctx context.Context, name string, work func(context.Context) (entry, error)) (entry, error) {
	p.workers.Add(1)
	done := p.making.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(p.background, cancel)() //nolint:contextcheck // The pool's, beside that of the call.
		return work(ctx)
	})
	finished := make(chan singleflight.Result, 1)
	go func() {
		defer p.workers.Done()
		finished <- <-done
	}()
	select {
	case result := <-finished:
		return result.Val.(entry), result.Err //nolint:forcetypeassert // It is what work returns.
	case <-ctx.Done():
		return entry{}, fmt.Errorf("%s is still being worked on, repeat the call: %w", name, context.Cause(ctx))
	}
}

// unusableError says that the volume group is not there, or cannot be used.
type unusableError struct{ error }

func (e unusableError) Unwrap() error { return e.error }

// unusable marks the errors of looking at the volume group that say so.
func unusable(err error) error {
	if errors.Is(err, volume.ErrNotFound) || errors.Is(err, volume.ErrPrecondition) {
		return unusableError{err}
	}
	return err
}

// elsewhere has the scheduler try another node where the volume group of this one cannot
// be used.
func elsewhere(err error) error {
	if errors.As(err, new(unusableError)) {
		return fmt.Errorf("%w: nothing can be made here: %s", volume.ErrExhausted, err.Error())
	}
	return err
}
