// Package node tests the plugin as kubelet drives it: over its socket, on real
// block devices, with the mounts of this machine.
package node

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
