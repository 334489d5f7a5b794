package publish

import (
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// admit decides about a publication of a volume that has others on this node,
// by the tables at NodePublishVolume in the CSI specification 1.13.
func admit(existing []Publication, wanted Publication) error {
	for _, other := range existing {
		switch {
		case other == wanted, other == wanted.recovered():
		case other.Target == wanted.Target:
			return fmt.Errorf("%w: the volume is published at %s with %s; unpublish it first",
				volume.ErrIncompatible, wanted.Target, difference(other, wanted))
		case other.Mode != wanted.Mode:
			return fmt.Errorf("%w: the volume is published at %s with access mode %s, and cannot be used as %s at the same time",
				volume.ErrPrecondition, other.Target, other.Mode, wanted.Mode)
		case !wanted.Mode.MultiTarget():
			return fmt.Errorf("%w: the volume is published at %s, and access mode %s allows one target on a node",
				volume.ErrPrecondition, other.Target, wanted.Mode)
		}
	}
	return nil
}

// unknownArguments stand in the record of a publication that was lost and found again:
// whoever repeats the request says what they are.
const unknownArguments = "unknown"

// recovered returns the publication as it is recorded where its record was lost.
func (p Publication) recovered() Publication {
	p.Arguments = unknownArguments
	return p
}

// difference says how a publication differs from the one that is asked for.
func difference(is, wanted Publication) string {
	switch {
	case is.Mode != wanted.Mode:
		return fmt.Sprintf("access mode %s, not %s", is.Mode, wanted.Mode)
	case is.ReadOnly != wanted.ReadOnly:
		return fmt.Sprintf("readonly=%t, not %t", is.ReadOnly, wanted.ReadOnly)
	default:
		return "another volume_context or publish_context"
	}
}
