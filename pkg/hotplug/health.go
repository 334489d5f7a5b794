package hotplug

import (
	"context"
	"fmt"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Conditions returns what is wrong with what running containers were given of a
// volume. It reads the records only.
func (m *Manager) Conditions(_ context.Context, volumeID string) ([]volume.Condition, error) {
	all, err := m.records.all()
	if err != nil {
		return nil, err
	}
	var found []volume.Condition
	for _, one := range all {
		if one.Volume != volumeID || one.State != Lost {
			continue
		}
		found = append(found, volume.Condition{
			Severity: volume.Inaccessible, Reason: volume.AttachmentLost,
			Message: fmt.Sprintf("attachment %s, in %s at %s, has lost its device (since %s): %s", one.ID, one.Target, one.Path, one.Since.UTC().Format(time.RFC3339), one.Reason),
		})
	}
	return found, nil
}
