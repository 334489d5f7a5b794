package hotplug

import (
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// An attachment that has lost its device is a condition of its volume, and of no other.
func TestConditions(t *testing.T) {
	m := &Manager{records: records{dir: t.TempDir(), boot: "boot"}}
	for id, state := range map[string]State{"a": Lost, "b": Attached, "c": Held} {
		one := record{Attachment: Attachment{
			ID: id, State: state, Reason: "the disk has gone", Since: time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC),
			Request: Request{Volume: "vol", Path: "/dev/xvdb", Target: Target{Container: "c1"}},
		}}
		if err := m.records.write(one); err != nil {
			t.Fatal(err)
		}
	}
	found, err := m.Conditions(t.Context(), "vol")
	const want = "attachment a, in container c1 at /dev/xvdb, has lost its device (since 2026-11-24T03:00:00Z): the disk has gone"
	if err != nil || len(found) != 1 || found[0] != (volume.Condition{Severity: volume.Inaccessible, Reason: volume.AttachmentLost, Message: want}) {
		t.Errorf("got %v, %v", found, err)
	}
	if found, err := m.Conditions(t.Context(), "another"); err != nil || len(found) > 0 {
		t.Errorf("got %v, %v", found, err)
	}
}
