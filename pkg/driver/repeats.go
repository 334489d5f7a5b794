package driver

import (
	"maps"
	"sync"
	"time"
)

const (
	// firstGap is how long the repeats of a failure stay out of the log at first. Kubelet
	// tries again after half a second, then twice as late each time, up to two minutes
	// (k8s.io/kubernetes/pkg/util/goroutinemap/exponentialbackoff).
	firstGap = 10 * time.Second
	// maxGap is the longest, reached after an hour: who looks at the last of the log sees
	// what still fails.
	maxGap = 30 * time.Minute
	// maxFailures is how many failures are kept. Beyond that the one that was not seen for
	// longest is forgotten, and told at once when it comes again.
	maxFailures = 512
)

// failure is what fails in the same way again and again.
type failure struct{ method, volume, target, err string }

// repeats says which repeats of a failure are told. Its zero value is ready for use, and
// its methods may be called concurrently.
type repeats struct {
	mu   sync.Mutex
	seen map[failure]*repeated
}

// repeated is what is kept of a failure.
type repeated struct {
	told, last time.Time
	gap        time.Duration
	// silent is how often it came since it was told.
	silent int
}

// note takes down a failure, and reports whether it is to be told, and how many of it
// have not been since the last that was.
func (r *repeats) note(f failure, now time.Time) (tell bool, silent int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, found := r.seen[f]
	if !found || now.Sub(known.last) > 2*maxGap {
		r.add(f, now)
		return true, 0
	}
	known.last = now
	if now.Sub(known.told) < known.gap {
		known.silent++
		return false, 0
	}
	silent = known.silent
	known.told, known.silent, known.gap = now, 0, min(2*known.gap, maxGap)
	return true, silent
}

func (r *repeats) add(f failure, now time.Time) {
	if r.seen == nil {
		r.seen = map[failure]*repeated{}
	}
	if _, found := r.seen[f]; !found && len(r.seen) >= maxFailures {
		oldest := f
		for other, known := range r.seen {
			if first, chosen := r.seen[oldest]; !chosen || known.last.Before(first.last) {
				oldest = other
			}
		}
		delete(r.seen, oldest)
	}
	r.seen[f] = &repeated{told: now, last: now, gap: firstGap}
}

// forget has a call that succeeded end what failed in its place: the next failure is news.
func (r *repeats) forget(f failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.seen, func(other failure, _ *repeated) bool {
		return other.method == f.method && other.volume == f.volume && other.target == f.target
	})
}
