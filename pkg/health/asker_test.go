package health

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// What hangs is asked once, keeps nobody for long, and is asked again once it has
// answered.
func TestAskerWaitsForNobody(t *testing.T) {
	asker, release := Asker[string]{Patience: time.Millisecond}, make(chan struct{})
	var asked atomic.Int32
	hang := func(context.Context) (string, error) {
		asked.Add(1)
		<-release
		return "alive", nil
	}
	for range 3 {
		_, err := asker.Ask(t.Context(), "disk", hang)
		silent := new(SilentError)
		if !errors.As(err, &silent) || silent.What != "disk" {
			t.Fatalf("got %v", err)
		}
		if got := silent.Condition(); got.Reason != volume.NotAnswering || got.Severity != volume.Inaccessible || !strings.HasPrefix(got.Message, "disk has not answered since 20") {
			t.Errorf("got %+v", got)
		}
	}
	asker.Patience = time.Minute // A millisecond can be too short for an answer that comes at once.
	if answer, err := asker.Ask(t.Context(), "another", func(context.Context) (string, error) { return "well", nil }); answer != "well" || err != nil {
		t.Errorf("got %q, %v", answer, err)
	}
	if asked.Load() != 1 {
		t.Errorf("it was asked %d times", asked.Load())
	}
	close(release)
	if answer, err := asker.Ask(t.Context(), "disk", hang); answer != "alive" || err != nil {
		t.Errorf("got %q, %v", answer, err)
	}
}

func TestAskerEndsWithTheContext(t *testing.T) {
	var asker Asker[string]
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	_, err := asker.Ask(ctx, "disk", func(inner context.Context) (string, error) {
		cancel()
		<-release
		return "", inner.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAskerSurvivesAFault(t *testing.T) {
	var asker Asker[string]
	_, err := asker.Ask(t.Context(), "disk", func(context.Context) (string, error) { panic("at the disco") })
	if err == nil || !strings.Contains(err.Error(), "at the disco") {
		t.Errorf("got %v", err)
	}
}
