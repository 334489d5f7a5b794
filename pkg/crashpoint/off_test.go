//go:build !crashpoints

package crashpoint_test

import (
	"os"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
)

// What users run has no crash points, whatever its environment says.
func TestHereDoesNothing(t *testing.T) {
	trace := t.TempDir() + "/trace"
	t.Setenv("RAWBLOCK_CRASH_AT", "1")
	t.Setenv("RAWBLOCK_CRASH_TRACE", trace)
	crashpoint.Here("a step")
	if _, err := os.Stat(trace); !os.IsNotExist(err) {
		t.Errorf("it left a trace: %v", err)
	}
}
