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
	// encryption and keys are for those of the pools that are encrypted.
	encryption encryption
	keys       keys
}

// id returns the ID of a volume or snapshot of this node.
func (v volumes) id(pool, name string) string {
	return volume.ID{Pool: pool, Name: name, Node: v.node}.String()
}

// open returns the device of a volume, open and verified; it is made where there
// is none yet. That of an encrypted volume is what reveal makes of its raw one.
//
// A volume that has attributes of its own, but for those about encryption, is one that
// an administrator made, whatever its ID looks like: to a provisioned volume,
// Kubernetes gives only keys with a slash.
func (v volumes) open(ctx context.Context, volumeID string, attributes map[string]string, reveal reveal) (*blockdev.Device, error) {
	wanted, attributes, err := splitEncryption(attributes)
	if err != nil {
		return nil, err
	}
	id, ok := volume.ParseID(volumeID)
	if !ok || hasOwnKeys(attributes) {
		if wanted.encryption != volume.Plain {
			return nil, fmt.Errorf("%w: volumeAttributes.%s is %s, but only volumes of pools are encrypted by this driver, not devices that an administrator names", volume.ErrInvalid, EncryptionParameter, wanted.encryption)
		}
		return v.named.Open(ctx, attributes)
	}
	pool, err := v.pool(id)
	if err != nil {
		return nil, err
	}
	info, err := pool.Get(ctx, id.Name)
	if err != nil {
		return nil, err
	}
	if err := wanted.checkKept(id, info); err != nil {
		return nil, err
	}
	raw, err := pool.Activate(ctx, id.Name)
	if err != nil || info.Encryption == volume.Plain {
		return raw, err
	}
	defer raw.Close()
	return reveal(ctx, id, info, raw)
}

// close undoes open for a volume that is no longer staged. What a pool can still tell
// of it does not matter: its disk may have gone.
func (v volumes) close(ctx context.Context, volumeID string) error {
	id, ok := volume.ParseID(volumeID)
	if !ok {
		return nil
	}
	pool, found := v.pools[id.Pool]
	if !found {
		return nil
	}
	if err := v.encryption.Close(ctx, id); err != nil {
		return err
	}
	return pool.Deactivate(ctx, id.Name)
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
