package inflight

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestNames(t *testing.T) {
	var calls Names
	unlock := mustLock(t, &calls, "volume", "/target")
	wantAborted(t, &calls, "volume")
	wantAborted(t, &calls, "/target")
	// All or none: what was free stays free.
	wantAborted(t, &calls, "other", "/target")
	mustLock(t, &calls, "other")()
	unlock()
	mustLock(t, &calls, "/target", "volume")()
	mustLock(t, &calls, "same", "same")()
	mustLock(t, &calls)()
	if len(calls.busy) != 0 {
		t.Errorf("still busy: %v", calls.busy)
	}
}

func TestOneIsLetIn(t *testing.T) {
	var (
		calls         Names
		inside, let   atomic.Int32
		start, finish = make(chan struct{}), sync.WaitGroup{}
	)
	for range 32 {
		finish.Go(func() {
			<-start
			for range 100 {
				unlock, err := calls.Lock("volume")
				if err != nil {
					continue
				}
				if inside.Add(1) != 1 {
					t.Error("two are inside")
				}
				let.Add(1)
				inside.Add(-1)
				unlock()
			}
		})
	}
	close(start)
	finish.Wait()
	if let.Load() == 0 {
		t.Error("nobody was let in")
	}
}

func mustLock(t *testing.T, calls *Names, names ...string) (unlock func()) {
	t.Helper()
	unlock, err := calls.Lock(names...)
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func wantAborted(t *testing.T, calls *Names, names ...string) {
	t.Helper()
	if _, err := calls.Lock(names...); !errors.Is(err, volume.ErrAborted) || !strings.Contains(err.Error(), names[len(names)-1]) {
		t.Errorf("lock %q: got %v; want %v with the name", names, err, volume.ErrAborted)
	}
}
