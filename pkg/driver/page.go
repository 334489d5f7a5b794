package driver

import (
	"fmt"
	"maps"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// page returns at most limit entries (0: all), by their IDs, from the ID that the
// token is on, and the token of the next page. What is made or removed between
// two pages neither hides nor doubles another entry. Errors: volume.ErrInvalid;
// volume.ErrAborted for a token that is none, as the CSI specification prescribes.
func page[Entry any](entries map[string]Entry, token string, limit int32) (found []Entry, next string, err error) {
	if limit < 0 {
		return nil, "", fmt.Errorf("%w: max_entries is %d", volume.ErrInvalid, limit)
	}
	if _, ok := volume.ParseID(token); token != "" && !ok {
		return nil, "", fmt.Errorf("%w: starting_token %q is not one that was given out; list from the start", volume.ErrAborted, token)
	}
	for _, id := range slices.Sorted(maps.Keys(entries)) {
		if id < token {
			continue
		}
		if limit > 0 && len(found) == int(limit) {
			return found, id, nil
		}
		found = append(found, entries[id])
	}
	return found, "", nil
}
