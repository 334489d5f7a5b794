package lvm

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// wipe is how the extents of a thick volume are wiped before others can have them.
type wipe int

const (
	wipeDiscard = wipe(blockdev.WipeDiscard)
	wipeZero    = wipe(blockdev.WipeZero)
	wipeSecure  = wipe(blockdev.WipeSecure)
	// wipeNone: not at all, and what is free is not wiped for it either.
	wipeNone = wipeSecure + 1
)

// wipes are the names of the wipes in a StorageClass, and in tags.
var wipes = map[string]wipe{"discard": wipeDiscard, "zero": wipeZero, "secure": wipeSecure, "none": wipeNone}

// WipeParameter is the only parameter of a StorageClass, of a thick pool alone.
const WipeParameter = "wipe"

func parseWipe(text string) (wipe, error) {
	if method, known := wipes[text]; known {
		return method, nil
	}
	return 0, fmt.Errorf("%w: %s %q is unknown; it is one of %s", volume.ErrInvalid, WipeParameter, text, strings.Join(slices.Sorted(maps.Keys(wipes)), ", "))
}

func (w wipe) String() string {
	for name, method := range wipes {
		if method == w {
			return name
		}
	}
	return "unknown"
}

// method is how extents are wiped, and those that a volume is to have.
func (w wipe) method() blockdev.WipeMethod { return blockdev.WipeMethod(w) }

// parameters returns the wipe of a volume with the parameters of a StorageClass; zero
// where the thin pool sees to it.
func (p *Pool) parameters(values map[string]string) (wipe, error) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		switch {
		case key != WipeParameter:
			return 0, fmt.Errorf("%w: parameter %q is unknown; a pool of logical volumes has the parameter %s", volume.ErrInvalid, key, WipeParameter)
		case p.options.ThinPool != "":
			return 0, fmt.Errorf("%w: parameter %q is for a pool without a thin pool, which zeroes what it gives to a volume", volume.ErrInvalid, key)
		}
	}
	text, given := values[WipeParameter]
	switch {
	case p.options.ThinPool != "":
		return 0, nil
	case given:
		return parseWipe(text)
	}
	return p.wipe, nil
}
