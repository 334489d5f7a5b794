package driver

import (
	"fmt"
	"sync"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// inflight keeps calls for one volume, or for one target, from running at the
// same time. The zero value is ready.
type inflight struct {
	mu   sync.Mutex
	busy map[string]struct{}
}

// lock takes the names, all or none of them, and returns the function that gives
// them back. Errors: volume.ErrAborted where one is taken; the caller should not
// wait, since kubelet repeats the call.
func (f *inflight) lock(names ...string) (unlock func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		if _, taken := f.busy[name]; taken {
			return nil, fmt.Errorf("%w for %s; repeat the call later", volume.ErrAborted, name)
		}
	}
	if f.busy == nil {
		f.busy = map[string]struct{}{}
	}
	for _, name := range names {
		f.busy[name] = struct{}{}
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, name := range names {
			delete(f.busy, name)
		}
	}, nil
}
