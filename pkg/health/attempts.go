package health

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// attemptTime is how long a volume that could not be opened is told of after the last
// attempt: kubelet repeats its own at least every two minutes.
const attemptTime = 10 * time.Minute

// attempt is one to open a volume that has failed.
type attempt struct {
	when      time.Time
	condition volume.Condition
}

// NoteOpening takes in what became of opening a volume: of one that an administrator made,
// and that was never staged, nothing else on this node knows. Errors that say nothing of
// its device are no concern of its health.
func (m *Monitor) NoteOpening(volumeID string, err error) {
	m.known.Lock()
	defer m.known.Unlock()
	delete(m.failed, volumeID)
	m.forgetAttempts()
	condition := volume.Condition{Severity: volume.Inaccessible}
	switch {
	case errors.Is(err, volume.ErrNotFound):
		condition.Reason = volume.DeviceGone
	case errors.Is(err, volume.ErrMismatch):
		condition.Reason = volume.DeviceReplaced
	default:
		return
	}
	condition.Message = fmt.Sprintf("the volume could not be opened: %v", err)
	m.failed[volumeID] = attempt{m.now(), condition}
}

// Unopened returns why volumes, by their IDs, could not be opened at the last attempt, if
// it was within the last ten minutes.
func (m *Monitor) Unopened() map[string]volume.Condition {
	m.known.Lock()
	defer m.known.Unlock()
	m.forgetAttempts()
	found := map[string]volume.Condition{}
	for id, failed := range m.failed {
		found[id] = failed.condition
	}
	return found
}

// forgetAttempts forgets those that are old. The caller holds m.known.
func (m *Monitor) forgetAttempts() {
	now := m.now()
	maps.DeleteFunc(m.failed, func(_ string, old attempt) bool { return now.Sub(old.when) > attemptTime })
}
