package volume_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestAccessModes(t *testing.T) {
	for name, want := range map[string]struct{ readOnly, multiTarget, multiNode bool }{
		"SINGLE_NODE_WRITER":        {false, false, false},
		"SINGLE_NODE_READER_ONLY":   {true, false, false},
		"SINGLE_NODE_SINGLE_WRITER": {false, false, false},
		"SINGLE_NODE_MULTI_WRITER":  {false, true, false},
		"MULTI_NODE_READER_ONLY":    {true, true, true},
		"MULTI_NODE_SINGLE_WRITER":  {false, true, true},
		"MULTI_NODE_MULTI_WRITER":   {false, true, true},
	} {
		mode, err := volume.ParseAccessMode(name)
		if err != nil || string(mode) != name {
			t.Errorf("%s: got %q, %v", name, mode, err)
		}
		if mode.ReadOnly() != want.readOnly || mode.MultiTarget() != want.multiTarget || mode.MultiNode() != want.multiNode {
			t.Errorf("%s: read-only %t, several targets %t, several nodes %t; want %+v",
				mode, mode.ReadOnly(), mode.MultiTarget(), mode.MultiNode(), want)
		}
	}
}

func TestParseAccessModeRefuses(t *testing.T) {
	for _, name := range []string{"", "UNKNOWN", "single_node_writer", "SINGLE_NODE_WRITER ", "99"} {
		mode, err := volume.ParseAccessMode(name)
		if mode != "" || !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), `"`+name+`"`) {
			t.Errorf("%q: got %q, %v; want %v with the name", name, mode, err, volume.ErrInvalid)
		}
	}
}
