package docs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
)

// The udev rule for hosts knows partitions of pools by the types that stand on disks
// (pkg/pool/disk, entry.go). What a guest shows is that of volumes alone.
func TestHostRuleKnowsThePartitions(t *testing.T) {
	rule, err := os.ReadFile(filepath.Join(root, "deploy/host/62-rawblock-csi.rules"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"rawblock volume", "rawblock wiping", "rawblock unwiped"} {
		// As libblkid spells them.
		if id := strings.ToLower(gpt.HashGUID(name).String()); !strings.Contains(string(rule), id) {
			t.Errorf("the rule does not know %s (%s)", id, name)
		}
	}
}
