package lvm_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/contract"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestContract(t *testing.T) {
	for name, suite := range map[string]contract.Suite{
		"thick": {New: func(t testing.TB) contract.Medium { return newGroup(t, 4096, 40*rig.MiB, 40*rig.MiB) }, Parameters: map[string]string{"wipe": "zero"}},
		"thin":  {New: func(t testing.TB) contract.Medium { return newThin(t, 512, 64*rig.MiB) }},
	} {
		t.Run(name, suite.Run)
	}
}
