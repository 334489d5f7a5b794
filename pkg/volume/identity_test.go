package volume_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestIdentity(t *testing.T) {
	for text, want := range map[string]string{
		"files/x@node-1": "files/x@node-1", "files/x@node-2": "files/x@node-1", "files/x@*": "files/x@node-1",
		// These are of no pool, or other names.
		"files/X@node-2": "files/X@node-1", "files/x": "files/x", "files/x@": "files/x@", "disk-1": "disk-1", "a/b/c@d": "a/b/c@d", "": "",
	} {
		if got := volume.Identity(text, "node-1"); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
		if again := volume.Identity(volume.Identity(text, "node-1"), "node-1"); again != want {
			t.Errorf("%q: twice it is %q", text, again)
		}
	}
}
