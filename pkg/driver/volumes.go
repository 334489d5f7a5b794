package driver

import (
	"context"
	"errors"
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

// identity returns the one spelling of a volume_id, by which everything is kept that is
// kept of a volume: every call takes it before it does anything else.
func (v volumes) identity(volumeID string) string { return volume.Identity(volumeID, v.node) }

// open returns the device of a volume, open and verified; it is made where there
// is none yet. That of an encrypted volume is what reveal makes of its raw one.
//
// A volume that has attributes of its own, but for those about encryption, is one that
// an administrator made: to a provisioned volume, Kubernetes gives only keys with a
// slash. Its ID must not have the form of a pool's, for a call that has no attributes,
// such as NodeUnstageVolume, would mean the volume of the pool.
func (v volumes) open(ctx context.Context, volumeID string, attributes map[string]string, reveal reveal) (*blockdev.Device, error) {
	wanted, attributes, err := splitEncryption(attributes)
	if err != nil {
		return nil, err
	}
	id, ok := volume.ParseID(volumeID)
	if ok && hasOwnKeys(attributes) {
		return nil, fmt.Errorf("%w: volume_id %q has the form of the IDs that pools give (POOL/NAME@NODE), but volumeAttributes name a device; give the PersistentVolume another volumeHandle",
			volume.ErrInvalid, volumeID)
	}
	if !ok {
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
	device, err := reveal(ctx, id, info, raw)
	if err != nil {
		return nil, openedError{err}
	}
	return device, nil
}

// openedError is an error after which a volume has its raw device.
type openedError struct{ error }

func (e openedError) Unwrap() error { return e.error }

// wasOpened reports whether a volume has its raw device though open failed.
func wasOpened(err error) bool { return errors.As(err, new(openedError)) }

// checkForeign returns an error where a device that an administrator names is, lies on,
// or carries something of a pool of this node. Errors: volume.ErrInUse.
func (v volumes) checkForeign(ctx context.Context, device *blockdev.Device) error {
	var owners []owner
	if owner, ok := v.named.(owner); ok {
		owners = append(owners, owner)
	}
	for _, name := range slices.Sorted(maps.Keys(v.pools)) {
		if owner, ok := v.pools[name].(owner); ok {
			owners = append(owners, owner)
		}
	}
	layers, err := device.Layers()
	if err != nil {
		return err
	}
	for _, owner := range owners {
		if err := owner.CheckForeign(ctx, layers); err != nil {
			return fmt.Errorf("volumeAttributes.device: %s: %w", device, err)
		}
	}
	return nil
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
