package publish

import (
	"errors"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The tables of a second publish at NodePublishVolume in the CSI specification
// 1.13. T1, T2 are the target paths of the two calls, P1, P2 their other arguments.
func TestAdmitSecondPublish(t *testing.T) {
	const (
		ok           = 0
		exists       = 1 // ALREADY_EXISTS
		precondition = 2 // FAILED_PRECONDITION
	)
	errorOf := map[int]error{exists: volume.ErrIncompatible, precondition: volume.ErrPrecondition}
	for _, row := range []struct {
		mode                                  volume.AccessMode
		sameTargetSame, sameTargetOther       int // T1=T2: P1=P2, P1!=P2
		anotherTargetSame, anotherTargetOther int // T1!=T2: P1=P2, P1!=P2
	}{
		{volume.MultiNodeReaderOnly, ok, exists, ok, ok},
		{volume.MultiNodeSingleWriter, ok, exists, ok, ok},
		{volume.MultiNodeMultiWriter, ok, exists, ok, ok},
		{volume.SingleNodeMultiWriter, ok, exists, ok, ok},
		{volume.SingleNodeSingleWriter, ok, exists, precondition, precondition},
		{volume.SingleNodeWriter, ok, exists, precondition, precondition},
		{volume.SingleNodeReaderOnly, ok, exists, precondition, precondition},
	} {
		first := Publication{Target: "/t1", Mode: row.mode, Arguments: "p1"}
		for second, want := range map[Publication]int{
			{Target: "/t1", Mode: row.mode, Arguments: "p1"}: row.sameTargetSame,
			{Target: "/t1", Mode: row.mode, Arguments: "p2"}: row.sameTargetOther,
			{Target: "/t2", Mode: row.mode, Arguments: "p1"}: row.anotherTargetSame,
			{Target: "/t2", Mode: row.mode, Arguments: "p2"}: row.anotherTargetOther,
			// Whether it is read-only is an argument, too.
			{Target: "/t1", Mode: row.mode, Arguments: "p1", ReadOnly: true}: row.sameTargetOther,
			{Target: "/t2", Mode: row.mode, Arguments: "p1", ReadOnly: true}: row.anotherTargetOther,
		} {
			if err := admit([]Publication{first}, second); !errors.Is(err, errorOf[want]) {
				t.Errorf("%s after %s: got %v, want %v", second, first, err, errorOf[want])
			}
		}
	}
}

func TestAdmit(t *testing.T) {
	const mode, other = volume.MultiNodeMultiWriter, volume.SingleNodeMultiWriter
	wanted := Publication{Target: "/t1", Mode: mode, Arguments: "p1"}
	for name, test := range map[string]struct {
		existing []Publication
		want     error
		says     string
	}{
		"first":                    {nil, nil, ""},
		"beside two":               {[]Publication{{Target: "/t2", Mode: mode}, {Target: "/t3", Mode: mode}}, nil, ""},
		"again beside another":     {[]Publication{{Target: "/t2", Mode: mode}, wanted}, nil, ""},
		"other arguments":          {[]Publication{{Target: "/t1", Mode: mode, Arguments: "p2"}}, volume.ErrIncompatible, "published at /t1 with another volume_context or publish_context"},
		"was read-only":            {[]Publication{{Target: "/t1", Mode: mode, Arguments: "p1", ReadOnly: true}}, volume.ErrIncompatible, "published at /t1 with readonly=true, not false"},
		"other mode":               {[]Publication{{Target: "/t1", Mode: other, Arguments: "p1"}}, volume.ErrIncompatible, "access mode SINGLE_NODE_MULTI_WRITER, not MULTI_NODE_MULTI_WRITER"},
		"other mode, other target": {[]Publication{{Target: "/t2", Mode: other}}, volume.ErrPrecondition, "published at /t2 with access mode SINGLE_NODE_MULTI_WRITER, and cannot be used as MULTI_NODE_MULTI_WRITER"},
		"one of two forbids it":    {[]Publication{wanted, {Target: "/t2", Mode: other}}, volume.ErrPrecondition, "published at /t2"},
	} {
		t.Run(name, func(t *testing.T) {
			err := admit(test.existing, wanted)
			if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v; want %v and the words %q", err, test.want, test.says)
			}
		})
	}
}
