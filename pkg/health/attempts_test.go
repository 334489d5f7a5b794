package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// What was tried long ago is not told, and not remembered.
func TestAttemptsAreForgotten(t *testing.T) {
	m, now := New(blockdev.NewSysfs(t.TempDir())), time.Now()
	m.now = func() time.Time { return now }
	want := func(want string) {
		t.Helper()
		reasons := map[string]volume.Reason{}
		for id, condition := range m.Unopened() {
			reasons[id] = condition.Reason
		}
		if got := fmt.Sprint(reasons); got != want {
			t.Errorf("told is %s, want %s", got, want)
		}
	}
	m.NoteOpening("old", volume.ErrNotFound)
	m.NoteOpening("busy", volume.ErrInUse)
	want("map[old:DeviceGone]")
	now = now.Add(attemptTime)
	m.NoteOpening("new", volume.ErrMismatch)
	want("map[new:DeviceReplaced old:DeviceGone]")
	now = now.Add(time.Second)
	want("map[new:DeviceReplaced]")
	m.NoteOpening("new", nil)
	want("map[]")
}
