// Package inflight keeps calls that concern the same thing from running at the
// same time. Who comes second is not made to wait: Kubernetes repeats its calls.
package inflight

import (
	"fmt"
	"sync"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Names are the names of what is being worked on, such as volumes and targets.
// The zero value is ready. The methods may be called concurrently.
type Names struct {
	mu   sync.Mutex
	busy map[string]struct{}
}

// Lock takes the names, all or none of them, and returns the function that gives
// them back. Errors: volume.ErrAborted where one is taken.
func (n *Names) Lock(names ...string) (unlock func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range names {
		if _, taken := n.busy[name]; taken {
			return nil, fmt.Errorf("%w for %s; repeat the call later", volume.ErrAborted, name)
		}
	}
	if n.busy == nil {
		n.busy = map[string]struct{}{}
	}
	for _, name := range names {
		n.busy[name] = struct{}{}
	}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, name := range names {
			delete(n.busy, name)
		}
	}, nil
}
