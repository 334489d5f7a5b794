package disk

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The layouts.
const (
	// LayoutPartition makes a partition of a disk for each volume.
	LayoutPartition = "partition"
	// LayoutWhole gives each volume a disk of its own.
	LayoutWhole = "whole"
)

// Options say which disks a pool has and what it makes of them.
type Options struct {
	// Match chooses the disks, Exclude takes some of them out again.
	Match   Selector
	Exclude []Selector
	// Layout is LayoutPartition or LayoutWhole; empty: LayoutPartition. It may be
	// changed at any time: it only concerns the volumes made from then on.
	Layout string
	// Wipe is the wipe of volumes whose StorageClass does not say: discard, zero
	// or secure; empty: discard.
	Wipe string
	// step is how many bytes are wiped before they are offered, and before a
	// restart finds them done; 0: wipeStep. Tests have small disks.
	step uint64
}

// Pool makes partitions of disks. Its methods may be called concurrently.
type Pool struct {
	name    string
	options Options
	wipe    wipe
	sysfs   blockdev.Sysfs
	logger  klog.Logger
	metrics metrics

	// background is the context of what goes on beside the calls.
	background context.Context
	stop       context.CancelFunc
	wipers     sync.WaitGroup

	// known is what is shown of all below to those who do not wait for mu.
	known atomic.Pointer[known]

	// mu guards all below, and the tables of the disks. It is held for the few reads
	// and writes of a change, and while a disk is looked at that has come, but never
	// while data is wiped. Whoever needs it waits for a disk that does not answer,
	// whichever that is; so staging and publishing a volume that is known, what
	// becomes of one that is taken down, and the metrics do not need it.
	mu      sync.Mutex
	members map[diskKey]*member
	refused map[diskKey]refusal
	lost    map[gpt.GUID]*lost
}

// diskKey tells disks apart as long as the machine runs: numbers are reused, with
// another diskseq.
type diskKey struct {
	number string
	seq    uint64
}

func keyOf(disk *blockdev.Disk) diskKey {
	if disk.Err != nil {
		return diskKey{disk.Name, 0} // Its number may be unknown.
	}
	return diskKey{disk.Number.String(), disk.DiskSeq}
}

// New returns the pool of a name, and adopts the disks that the options choose.
// What was going on when the plugin ended goes on. The pool logs to the logger of
// ctx and ends with Close.
//
// Errors: volume.ErrInvalid for an option. A disk that cannot be used is no error,
// see Status.
func New(ctx context.Context, name string, options Options, sysfs blockdev.Sysfs) (*Pool, error) {
	if options.Layout == "" {
		options.Layout = LayoutPartition
	}
	if options.step == 0 {
		options.step = wipeStep
	}
	if options.Layout != LayoutPartition && options.Layout != LayoutWhole {
		return nil, fmt.Errorf("%w: layout %q is unknown; it is %s or %s", volume.ErrInvalid, options.Layout, LayoutPartition, LayoutWhole)
	}
	method := wipeDiscard
	if options.Wipe != "" {
		var err error
		if method, err = parseWipe(options.Wipe); err != nil {
			return nil, err
		}
	}
	if method == wipeNone {
		return nil, fmt.Errorf("%w: the wipe of a pool cannot be none; a StorageClass can say so", volume.ErrInvalid)
	}
	pool := &Pool{
		name: name, options: options, wipe: method, sysfs: sysfs,
		logger:  klog.FromContext(ctx).WithValues("pool", name),
		metrics: newMetrics(name),
		members: map[diskKey]*member{}, refused: map[diskKey]refusal{}, lost: map[gpt.GUID]*lost{},
	}
	pool.background, pool.stop = context.WithCancel(context.WithoutCancel(ctx))
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if err := pool.discover(true); err != nil {
		pool.stop()
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	return pool, nil
}

// closeWait is how long Close waits for disks, which may not answer: little of the
// 30 seconds that Kubernetes leaves a container, most of which calls may have taken.
const closeWait = 4 * time.Second

// Close ends what goes on in the background and gives the disks back. Volumes in
// use are left as they are. No other call may follow. What still waits for a disk
// after closeWait ends with the process, if it ever does.
func (p *Pool) Close() {
	p.stop()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		p.wipers.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		for key, m := range p.members {
			m.release()
			delete(p.members, key)
		}
		p.show()
	}()
	select {
	case <-closed:
	case <-time.After(closeWait):
		p.logger.Info("A disk does not answer, not waiting for it any longer")
	}
}

// usable returns the disks of the pool in the order of their GUIDs, so that the
// order is the same whatever the kernel calls them.
func (p *Pool) usable() []*member {
	return slices.SortedFunc(maps.Values(p.members), func(a, b *member) int {
		return slices.Compare(a.table.Disk[:], b.table.Disk[:])
	})
}

// find returns the disk and the index of the entry of a volume.
//
// Errors: volume.ErrNotFound; volume.ErrMismatch where two disks have it.
func (p *Pool) find(name string) (*member, int, error) {
	id, index := volumeID(p.name, name), -1
	var found *member
	for _, m := range p.usable() {
		i := slices.IndexFunc(m.table.Entries[:], func(e gpt.Entry) bool { return e.Type == volumeType && e.ID == id })
		if i < 0 {
			continue
		}
		if found != nil {
			return nil, 0, fmt.Errorf("%w: the disks %s and %s both have volume %s; remove the one that is a copy", volume.ErrMismatch, found, m, name)
		}
		found, index = m, i
	}
	if found == nil {
		return nil, 0, fmt.Errorf("%w: pool %s has no volume %s on the disks that are attached", volume.ErrNotFound, p.name, name)
	}
	return found, index, nil
}

// look finds a volume, also on a disk that has just been attached, and not on one
// that has gone.
func (p *Pool) look(name string) (*member, int, error) {
	m, index, err := p.find(name)
	if err == nil {
		attached, err := p.sysfs.IsAttached(m.disk.Number, m.disk.DiskSeq)
		if err != nil || attached {
			return m, index, err
		}
	}
	if err := p.discover(false); err != nil {
		return nil, 0, err
	}
	return p.find(name)
}
