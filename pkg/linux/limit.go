package linux

import (
	"errors"
	"sync"
	"time"
)

// ErrStuck says that what was asked does not answer: a filesystem whose server hangs never
// does.
var ErrStuck = errors.New("it does not answer")

// Limit runs what others can keep from ever returning, such as anything that asks a
// filesystem of a container. Its methods may be called concurrently.
type Limit struct {
	wait    time.Duration
	most    int
	mu      sync.Mutex
	running map[*run]bool
}

// run is something that has begun and not ended.
type run struct {
	what  string
	since time.Time
}

// NewLimit returns a limit for what takes that long at most. Of what does not answer, each
// keeps a thread: where so many do, nothing is begun any more.
func NewLimit(wait time.Duration, most int) *Limit {
	return &Limit{wait: wait, most: most, running: map[*run]bool{}}
}

// Do runs f, and returns ErrStuck where it takes too long: f then goes on by itself, and
// must use nothing that the caller closes. As long as it does, the same is not asked again:
// then f does not begin.
func (l *Limit) Do(what string, f func()) (begun bool, err error) {
	now := l.begin(what)
	if now == nil {
		return false, ErrStuck
	}
	done := make(chan struct{})
	go func() {
		defer l.end(now)
		defer close(done)
		f()
	}()
	timer := time.NewTimer(l.wait)
	defer timer.Stop()
	select {
	case <-done:
		return true, nil
	case <-timer.C:
	}
	select { // Where this process itself was slow, both were there.
	case <-done:
		return true, nil
	default:
		return true, ErrStuck
	}
}

// Ask is Do for a question that has an answer.
func Ask[Answer any](l *Limit, what string, question func() (Answer, error)) (Answer, error) {
	var answer Answer
	var err error
	if _, stuck := l.Do(what, func() { answer, err = question() }); stuck != nil {
		var none Answer // The question may answer yet.
		return none, stuck
	}
	return answer, err
}

// Run is Do for what can fail.
func (l *Limit) Run(what string, f func() error) error {
	_, err := Ask(l, what, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// begin notes that something is begun: nil where the same is stuck, or too much is.
func (l *Limit) begin(what string) *run {
	l.mu.Lock()
	defer l.mu.Unlock()
	stuck := 0
	for other := range l.running {
		if time.Since(other.since) <= l.wait {
			continue
		}
		if stuck++; other.what == what || stuck >= l.most {
			return nil
		}
	}
	now := &run{what, time.Now()}
	l.running[now] = true
	return now
}

func (l *Limit) end(now *run) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.running, now)
}
