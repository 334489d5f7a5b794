package hotplug

import (
	"context"
	"testing"
)

// A pod ends while something is being done for another pod's attachment of the same volume,
// and does not get on: it waits for its own alone.
func TestWithdrawWaitsForItsOwn(t *testing.T) {
	m := &Manager{records: records{dir: t.TempDir(), boot: "boot"}}
	one := record{Boot: "boot", Attachment: Attachment{ID: "theirs", Owner: "their-pod", Request: Request{Volume: "vol"}}}
	if err := m.records.write(one); err != nil {
		t.Fatal(err)
	}
	unlock, err := m.busy.lock(t.Context(), "theirs")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // Who waits fails at once.
	if err := m.Withdraw(ctx, "vol", "/publish/vol/my-pod"); err != nil {
		t.Error(err)
	}
}
