package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// volumes knows where a volume of this node is: in one of its pools, or on a
// device that an administrator names.
type volumes struct {
	node  string
	pools map[string]Pool
	named devices
}

// id returns the ID of a volume or snapshot of this node.
func (v volumes) id(pool, name string) string {
	return volume.ID{Pool: pool, Name: name, Node: v.node}.String()
}

// open returns the device of a volume, open and verified; it is made where there
// is none yet. A volume that has attributes of its own is one that an
// administrator made, whatever its ID looks like: to a provisioned volume,
// Kubernetes gives only keys with a slash.
func (v volumes) open(ctx context.Context, volumeID string, attributes map[string]string) (*blockdev.Device, error) {
	id, ok := volume.ParseID(volumeID)
	if !ok || hasOwnKeys(attributes) {
		return v.named.Open(ctx, attributes)
	}
	pool, err := v.pool(id)
	if err != nil {
		return nil, err
	}
	return pool.Activate(ctx, id.Name)
}

// close undoes open for a volume that is no longer staged.
func (v volumes) close(ctx context.Context, volumeID string) error {
	id, ok := volume.ParseID(volumeID)
	if !ok {
		return nil
	}
	if pool, found := v.pools[id.Pool]; found {
		return pool.Deactivate(ctx, id.Name)
	}
	return nil
}

// expander returns the pool of a volume, if it can grow its volumes.
func (v volumes) expander(volumeID string) (pool expander, name string, ok bool) {
	id, ok := volume.ParseID(volumeID)
	if !ok {
		return nil, "", false
	}
	pool, ok = v.pools[id.Pool].(expander)
	return pool, id.Name, ok
}

// pool returns the pool of an ID. Errors: volume.ErrNotFound.
func (v volumes) pool(id volume.ID) (Pool, error) {
	pool, found := v.pools[id.Pool]
	if !found {
		return nil, fmt.Errorf("%w: %s: node %s has no pool %s (it has: %s)", volume.ErrNotFound, id, v.node, id.Pool, v.poolNames())
	}
	return pool, nil
}

func (v volumes) poolNames() string {
	return strings.Join(slices.Sorted(maps.Keys(v.pools)), ", ")
}

// hasOwnKeys reports whether there are keys that are not Kubernetes' own.
func hasOwnKeys(values map[string]string) bool {
	for key := range values {
		if !strings.Contains(key, "/") {
			return true
		}
	}
	return false
}
