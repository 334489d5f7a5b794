// Package attack plays the attacker: a pod with a volume, an author of
// PersistentVolumes, a user of the node. Each test tries to get something that is
// not the attacker's, and fails if the attacker gets it.
//
// Rules: the attacker acts from where an attacker stands (in a container, through a
// device node that was published, or over the CSI socket), never by calling the
// plugin's packages. Each test is a row of docs/explanation/security-model.md.
package attack

import (
	"os"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(controlVariable); name != "" {
		os.Exit(doControl(name))
	}
	if os.Getenv(fuseVariable) != "" {
		os.Exit(serveFuse())
	}
	if path := os.Getenv(executorVariable); path != "" {
		os.Exit(executeAfterOpening(path))
	}
	rig.Main(m)
}
