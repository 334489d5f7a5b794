package health

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Patience is how long an answer is waited for: far longer than any disk takes that
// works, and short enough for kubelet, which asks for one volume after the other.
const Patience = 5 * time.Second

// Asker asks what may never answer. A question that has not been answered is not asked
// again: all wait for the one answer, none for longer than the patience, so there is
// one goroutine for each thing that hangs. The zero value is ready. Its methods may be
// called concurrently.
type Asker[Answer any] struct {
	// Patience is how long each question is waited for; 0: Patience.
	Patience time.Duration
	mu       sync.Mutex
	asked    map[string]*question[Answer]
}

type question[Answer any] struct {
	since    time.Time
	answered chan struct{}
	answer   Answer
	err      error
}

// SilentError says that a question has not been answered.
type SilentError struct {
	// What was asked, and Since when.
	What  string
	Since time.Time
}

func (e *SilentError) Error() string {
	return fmt.Sprintf("%s has not answered since %s: a disk hangs; look for hung tasks and resets in the node's kernel log, and replace the disk, or reboot the node if it does not recover",
		e.What, stamp(e.Since))
}

// Condition is the error as a condition.
func (e *SilentError) Condition() volume.Condition {
	return volume.Condition{Severity: volume.Inaccessible, Reason: volume.NotAnswering, Message: e.Error()}
}

// Unknown is the condition of something whose health could not be found out.
func Unknown(what string, err error) volume.Condition {
	return volume.Condition{Severity: volume.Degraded, Reason: volume.CheckFailed, Message: fmt.Sprintf("cannot find out how %s is: %v", what, err)}
}

// Ask returns what find returns. What names the question: two with one name are one.
// The context of find has the values of ctx and does not end.
//
// Errors: those of find; *SilentError where it takes too long; that of ctx, when it
// ends first.
func (a *Asker[Answer]) Ask(ctx context.Context, what string, find func(context.Context) (Answer, error)) (Answer, error) {
	patience := a.Patience
	if patience == 0 {
		patience = Patience
	}
	q := a.ask(ctx, what, find)
	timer := time.NewTimer(time.Until(q.since.Add(patience)))
	defer timer.Stop()
	var none Answer
	select {
	case <-q.answered:
		return q.answer, q.err
	case <-ctx.Done():
		return none, fmt.Errorf("wait for the health of %s: %w", what, ctx.Err())
	case <-timer.C:
		return none, &SilentError{what, q.since}
	}
}

func (a *Asker[Answer]) ask(ctx context.Context, what string, find func(context.Context) (Answer, error)) *question[Answer] {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q := a.asked[what]; q != nil {
		return q
	}
	if a.asked == nil {
		a.asked = map[string]*question[Answer]{}
	}
	q := &question[Answer]{since: time.Now(), answered: make(chan struct{})}
	a.asked[what] = q
	go func() {
		defer func() {
			if cause := recover(); cause != nil {
				// As in a call: a fault here must not end those of other volumes.
				klog.FromContext(ctx).Error(nil, "Looking for the health panicked", "what", what, "cause", cause, "stack", string(debug.Stack()))
				q.err = fmt.Errorf("the plugin has a fault, please report it with the stack in its log: %v", cause)
			}
			a.mu.Lock()
			delete(a.asked, what)
			a.mu.Unlock()
			close(q.answered)
		}()
		q.answer, q.err = find(context.WithoutCancel(ctx))
	}()
	return q
}

// stamp is a time in a message.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
