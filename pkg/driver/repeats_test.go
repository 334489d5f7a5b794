package driver

import (
	"fmt"
	"testing"
	"time"
)

// Kubelet's own rhythm, for six hours: the first is told, then fewer and fewer, and no
// failure is lost from the counts.
func TestRepeatsAreToldWithGrowingGaps(t *testing.T) {
	var r repeats
	f := failure{method: "NodeStageVolume", volume: "vol", err: "in use"}
	begin := time.Unix(0, 0)
	now, wait := begin, 500*time.Millisecond
	var told []time.Duration
	calls, counted := 0, 0
	for now.Sub(begin) < 6*time.Hour {
		calls++
		if tell, silent := r.note(f, now); tell {
			told = append(told, now.Sub(begin))
			counted += 1 + silent
		}
		now, wait = now.Add(wait), min(2*wait, 122*time.Second)
	}
	if told[0] != 0 || len(told) < 10 || len(told) > 25 {
		t.Errorf("%d of %d are told, at %v", len(told), calls, told)
	}
	for i := 2; i < len(told); i++ {
		if gap, before := told[i]-told[i-1], told[i-1]-told[i-2]; gap+122*time.Second < before || gap > maxGap+122*time.Second {
			t.Errorf("after %v it is told again after %v", before, gap)
		}
	}
	if left := calls - counted; left != r.seen[f].silent {
		t.Errorf("%d of %d are neither told nor counted; %d are still to be", left, calls, r.seen[f].silent)
	}
}

func TestWhatEndsTheSilence(t *testing.T) {
	f := failure{method: "NodePublishVolume", volume: "vol", target: "/a", err: "in use"}
	change := func(change func(*failure)) failure { other := f; change(&other); return other }
	now := time.Unix(0, 0)
	var r repeats
	note := func(f failure, want bool, why string) {
		t.Helper()
		if tell, _ := r.note(f, now); tell != want {
			t.Errorf("%s: told: %t, want %t", why, tell, want)
		}
	}
	note(f, true, "the first")
	note(f, false, "a repeat")
	note(change(func(f *failure) { f.err = "gone" }), true, "another error")
	note(change(func(f *failure) { f.volume = "other" }), true, "another volume")
	note(change(func(f *failure) { f.method = "NodeStageVolume" }), true, "another call")
	note(change(func(f *failure) { f.target = "/b" }), true, "another pod")
	note(f, false, "the first again, after others")
	r.forget(f)
	note(f, true, "after a success")
	note(change(func(f *failure) { f.target = "/b" }), false, "the success of another pod ends nothing")
	now = now.Add(2*maxGap + 1)
	note(f, true, "long after the last")
}

func TestRepeatsAreBounded(t *testing.T) {
	var r repeats
	now := time.Unix(0, 0)
	of := func(i int) failure { return failure{volume: fmt.Sprint(i)} }
	for i := range 2 * maxFailures {
		now = now.Add(time.Millisecond)
		r.note(of(i), now)
		r.note(of(0), now) // Never the one that was not seen for longest.
	}
	if len(r.seen) != maxFailures {
		t.Errorf("%d failures are kept, want %d", len(r.seen), maxFailures)
	}
	if tell, _ := r.note(of(0), now); tell {
		t.Error("the one that comes all the time is forgotten")
	}
	if tell, _ := r.note(of(2*maxFailures-1), now); tell {
		t.Error("the newest is forgotten")
	}
	if tell, _ := r.note(of(1), now); !tell {
		t.Error("the one that was not seen for longest is kept")
	}
}
