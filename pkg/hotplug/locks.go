package hotplug

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// lockWait is how long a call waits for another one on the same attachment. Nothing that
// is done for one takes as long, but to suspend a device whose disk hangs.
const lockWait = 30 * time.Second

// locks are locks by name. The zero value has none. Its methods may be called concurrently.
//
// Each attachment has one, by its ID, for as long as something is done for it: much of that
// can be delayed by the container (its filesystems, its processes), and must not keep others
// waiting. The lock of the manager is held only while nothing of a container is asked.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits until nobody else has the lock. Errors: volume.ErrAborted.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		released, mine := l.try(name)
		if mine {
			return func() { l.unlock(name, released) }, nil
		}
		select {
		case <-released:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: attachment %s is being worked on; try again", volume.ErrAborted, name)
		}
	}
}

// try takes the lock if it is free. The channel is closed when it is free again.
func (l *locks) try(name string) (released chan struct{}, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if released, taken := l.held[name]; taken {
		return released, false
	}
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	released = make(chan struct{})
	l.held[name] = released
	return released, true
}

func (l *locks) unlock(name string, released chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, name)
	close(released)
}
