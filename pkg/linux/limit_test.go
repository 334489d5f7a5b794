package linux_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Of two who ask at once, one is answered in the end: the other keeps its thread, so nobody
// asks anew.
func TestLimitCountsWhatHangs(t *testing.T) {
	limit, answered := linux.NewLimit(2*time.Second, 10), make(chan struct{})
	hang := map[string]chan struct{}{"first": make(chan struct{}), "second": make(chan struct{})}
	var group sync.WaitGroup
	for name, until := range hang {
		group.Go(func() {
			limit.Do("file", func() {
				<-until
				if name == "first" {
					close(answered)
				}
			})
		})
	}
	group.Wait()
	close(hang["first"])
	<-answered
	time.Sleep(10 * time.Millisecond) // It is noted after that.
	if begun, err := limit.Do("file", func() {}); begun || !errors.Is(err, linux.ErrStuck) {
		t.Errorf("it is asked again while one question hangs: %t, %v", begun, err)
	}
	if begun, _ := limit.Do("another", func() {}); !begun {
		t.Error("another is not asked")
	}
	close(hang["second"])
	for begun := false; !begun; {
		begun, _ = limit.Do("file", func() {})
	}
}

// Where so many hang, nothing is begun any more.
func TestLimitIsFull(t *testing.T) {
	limit, hang := linux.NewLimit(time.Millisecond, 2), make(chan struct{})
	for _, name := range []string{"a", "b"} {
		limit.Do(name, func() { <-hang })
	}
	time.Sleep(2 * time.Millisecond) // The limit.
	if begun, err := limit.Do("c", func() {}); begun || !errors.Is(err, linux.ErrStuck) {
		t.Errorf("a third is begun: %t, %v", begun, err)
	}
	close(hang)
	for begun := false; !begun; {
		begun, _ = limit.Do("c", func() {})
	}
}

// Who asks the same without pause, each for a moment, is answered.
func TestLimitOfWhatIsAskedWithoutPause(t *testing.T) {
	limit := linux.NewLimit(3*time.Second, 10)
	var group sync.WaitGroup
	ask := func() (end chan struct{}) {
		end, begun := make(chan struct{}), make(chan struct{})
		begin := sync.OnceFunc(func() { close(begun) })
		group.Go(func() {
			if _, err := limit.Do("file", func() { begin(); <-end }); err != nil {
				t.Error(err)
				begin()
			}
		})
		<-begun
		return end
	}
	end := ask()
	for range 33 { // Each begins before the one before it ends.
		time.Sleep(100 * time.Millisecond)
		next := ask()
		close(end)
		end = next
	}
	close(end)
	group.Wait()
}
