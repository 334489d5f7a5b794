package admin_test

import (
	"regexp"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
)

// Each call has an ID of its own in its lines.
func TestCallsHaveIDs(t *testing.T) {
	path, log := serve(t, attachments{list: func() ([]hotplug.Attachment, error) { return nil, nil }})
	for range 2 {
		_, err := admin.NewClient(path).List(t.Context())
		must(t, err)
	}
	ids := regexp.MustCompile(`requestID="([A-Z2-7]{10})" method="List"`).FindAllStringSubmatch(log(), -1)
	if len(ids) != 2 || ids[0][1] == ids[1][1] {
		t.Errorf("got the IDs %q:\n%s", ids, log())
	}
}
