// Package container tests what a running container sees of the host's disks:
// first three experiments that show why a disk cannot be put into a container
// from outside, then what a block volume does instead (docs/how-it-works.md).
package container

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
