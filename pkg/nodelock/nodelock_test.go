package nodelock_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/nodelock"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// One has it at a time; who waits gets it once it is given up.
func TestTake(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := nodelock.Take(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	hurried, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := nodelock.Take(hurried, dir); !errors.Is(err, volume.ErrAborted) {
		t.Errorf("a second one got %v", err)
	}
	got := make(chan error)
	go func() {
		second, err := nodelock.Take(t.Context(), dir)
		if err == nil {
			second.Release()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("it was not waited for: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	first.Release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
