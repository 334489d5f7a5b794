//go:build crashpoints

package crashpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
)

func TestMain(m *testing.M) {
	if os.Getenv("RAWBLOCK_TEST_CHILD") != "" {
		for _, step := range []string{"first step", "second step", "third step"} {
			crashpoint.Here(step)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestHereStopsAtTheChosenPoint(t *testing.T) {
	trace := t.TempDir() + "/trace"
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), "RAWBLOCK_TEST_CHILD=1", "RAWBLOCK_STOP_AT=2", "RAWBLOCK_CRASH_TRACE="+trace)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(child.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("it has not stopped: %v, %v", status, err)
	}
	if got, err := os.ReadFile(trace); err != nil || string(got) != "first step\nsecond step\n" {
		t.Errorf("trace %q (%v)", got, err)
	}
	if err := errors.Join(child.Process.Signal(syscall.SIGCONT), child.Wait()); err != nil {
		t.Errorf("it does not go on: %v", err)
	}
}

func TestHereKillsAtTheChosenPoint(t *testing.T) {
	const all = "first step\nsecond step\nthird step\n"
	for at, want := range map[string]struct {
		killed bool
		trace  string
	}{
		"":  {false, all},
		"0": {false, all},
		"1": {true, "first step\n"},
		"2": {true, "first step\nsecond step\n"},
		"3": {true, all},
		"4": {false, all},
	} {
		t.Run("at "+at, func(t *testing.T) {
			trace := t.TempDir() + "/trace"
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), "RAWBLOCK_TEST_CHILD=1", "RAWBLOCK_CRASH_AT="+at, "RAWBLOCK_CRASH_TRACE="+trace)
			err := child.Run()
			var exit *exec.ExitError
			killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
			if killed != want.killed || !killed && err != nil {
				t.Errorf("killed: %t (%v), want %t", killed, err, want.killed)
			}
			if got, err := os.ReadFile(trace); err != nil || string(got) != want.trace {
				t.Errorf("trace %q (%v), want %q", got, err, want.trace)
			}
		})
	}
}
