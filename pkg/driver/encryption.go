package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The parameters of a StorageClass that are about encryption, for any pool. They come
// back as attributes of the PersistentVolumes, where they must be what the medium
// says.
const (
	// EncryptionParameter is luks2 for volumes that are encrypted.
	EncryptionParameter = "encryption"
	// KeyParameter names a key in the node's directory of keys. Without it the key is
	// in the secret with which a volume is staged.
	KeyParameter = "encryptionKey"
)

// The keys of the secret with which a volume is staged.
const (
	// KeySecret is the encryption key, as it is.
	KeySecret = "encryptionKey"
	// PreviousKeySecret is that before a change; a volume that still has it is changed
	// to the other one.
	PreviousKeySecret = "encryptionKeyPrevious"
)

// encryption opens encrypted volumes. Errors of all: volume.ErrPrecondition where the
// node cannot.
type encryption interface {
	// Check returns an error where the node cannot open encrypted volumes.
	Check(ctx context.Context) error
	// Open returns the device of a volume without its encryption, over its raw device,
	// which the caller keeps open meanwhile. The first of the keys is that of the
	// volume; one that still has another of them is changed to it. A volume that is
	// open is found again; one that is blank is made.
	//
	// Errors: volume.ErrInvalid for a key; volume.ErrPrecondition where no key opens
	// it, or what is there is no encrypted volume; volume.ErrMismatch where it is
	// another volume; volume.ErrInUse; volume.ErrNotFound where the device has gone.
	Open(ctx context.Context, id volume.ID, source volume.Source, raw *blockdev.Device, keys [][]byte) (*blockdev.Device, error)
	// Find returns the device of a volume that is open over its raw device. Errors:
	// volume.ErrPrecondition where it is not open; volume.ErrInUse where it is open over
	// another one.
	Find(ctx context.Context, id volume.ID, raw *blockdev.Device) (*blockdev.Device, error)
	// Resize has a volume that is open take over the size of its raw device. Errors:
	// those of Find.
	Resize(ctx context.Context, id volume.ID, raw *blockdev.Device) error
	// Close closes a volume, whatever has become of its raw device. One that is not
	// open is no error. Errors: volume.ErrInUse.
	Close(ctx context.Context, id volume.ID) error
}

// keys are what a node has keys in.
type keys interface {
	// Keys returns the key of a name, and those before a change. Errors:
	// volume.ErrInvalid for a name that is none; volume.ErrPrecondition where there is
	// no such key, or it is not kept as a secret is.
	Keys(name string) ([][]byte, error)
}

// noEncryption is a node that cannot open encrypted volumes.
type noEncryption struct{}

var errNoEncryption = fmt.Errorf("%w: this plugin was not made to open encrypted volumes", volume.ErrPrecondition)

func (noEncryption) Check(context.Context) error { return errNoEncryption }

func (noEncryption) Open(context.Context, volume.ID, volume.Source, *blockdev.Device, [][]byte) (*blockdev.Device, error) {
	return nil, errNoEncryption
}

func (noEncryption) Find(context.Context, volume.ID, *blockdev.Device) (*blockdev.Device, error) {
	return nil, errNoEncryption
}

func (noEncryption) Resize(context.Context, volume.ID, *blockdev.Device) error {
	return errNoEncryption
}

func (noEncryption) Close(context.Context, volume.ID) error { return nil }

// noKeys is a node without keys.
type noKeys struct{}

func (noKeys) Keys(name string) ([][]byte, error) {
	return nil, fmt.Errorf("%w: %s is %q, but the node's configuration has no encryption.keyDirectory", volume.ErrPrecondition, KeyParameter, name)
}

// wish is what parameters or attributes say about encryption.
type wish struct {
	encryption volume.Encryption
	// key is the name of a key of the node, if it is not in the secret.
	key string
}

// splitEncryption takes what is about encryption out of parameters or attributes.
func splitEncryption(all map[string]string) (wanted wish, rest map[string]string, err error) {
	text, asked := all[EncryptionParameter]
	key, named := all[KeyParameter]
	if !asked && !named {
		return wish{}, all, nil
	}
	if wanted.encryption, err = volume.ParseEncryption(text); err != nil {
		return wish{}, nil, fmt.Errorf("%s: %w", EncryptionParameter, err)
	}
	if named && !volume.KeyName.MatchString(key) {
		return wish{}, nil, fmt.Errorf("%w: %s %q cannot be the name of a key; expected letters, digits, dots, hyphens and underscores", volume.ErrInvalid, KeyParameter, key)
	}
	wanted.key = key
	rest = maps.Clone(all)
	delete(rest, EncryptionParameter)
	delete(rest, KeyParameter)
	return wanted, rest, nil
}

// attributes are those of a volume that is made for the wish.
func (w wish) attributes() map[string]string {
	if w.encryption == volume.Plain {
		return nil
	}
	attributes := map[string]string{EncryptionParameter: string(w.encryption)}
	if w.key != "" {
		attributes[KeyParameter] = w.key
	}
	return attributes
}

// checkKept returns an error unless the medium says of a volume what its
// PersistentVolume does: whoever can change that must not turn one kind of volume into
// the other. Errors: volume.ErrMismatch.
func (w wish) checkKept(id volume.ID, info volume.Info) error {
	if info.Encryption == w.encryption && info.Encryption.Known() {
		return nil
	}
	return fmt.Errorf("%w: volume %s was made with %s %q, but volumeAttributes.%s is %q; make it the same (a PersistentVolume has to be made anew for that)",
		volume.ErrMismatch, id, EncryptionParameter, info.Encryption, EncryptionParameter, w.encryption)
}

// checkPossible returns an error where this node cannot keep the wish. Errors:
// volume.ErrExhausted, by which the caller tries another node.
func (v volumes) checkPossible(ctx context.Context, wanted wish) error {
	if wanted.encryption == volume.Plain {
		return nil
	}
	err := v.encryption.Check(ctx)
	if err == nil && wanted.key != "" {
		_, err = v.keys.Keys(wanted.key)
	}
	if err != nil {
		return fmt.Errorf("%w: %s %s on node %s: %s", volume.ErrExhausted, EncryptionParameter, wanted.encryption, v.node, err.Error())
	}
	return nil
}

// chooseKeys returns the keys to stage a volume with: those of the secret, or those of
// the node. A secret with a key for a volume that is not encrypted is an error: whoever
// gave it takes the volume to be. Errors: volume.ErrInvalid, volume.ErrPrecondition.
func (v volumes) chooseKeys(wanted wish, secrets map[string]string) ([][]byte, error) {
	key, inSecret := secrets[KeySecret]
	previous, hasPrevious := secrets[PreviousKeySecret]
	switch {
	case wanted.encryption == volume.Plain && (inSecret || hasPrevious):
		return nil, fmt.Errorf("%w: the volume is not encrypted, but the secret to stage it with has an %s; set %s: %s in the StorageClass and make the volume anew, or take the secret away",
			volume.ErrInvalid, KeySecret, EncryptionParameter, volume.LUKS2)
	case wanted.encryption == volume.Plain:
		return nil, nil
	case wanted.key != "" && (inSecret || hasPrevious):
		return nil, fmt.Errorf("%w: there are two encryption keys: volumeAttributes.%s names %q of the node, and the secret to stage the volume with has an %s; leave one of them out",
			volume.ErrInvalid, KeyParameter, wanted.key, KeySecret)
	case wanted.key != "":
		return v.keys.Keys(wanted.key)
	case !inSecret:
		return nil, fmt.Errorf("%w: the volume is encrypted, but there is no key: name a secret with an %s in the StorageClass (csi.storage.k8s.io/node-stage-secret-name and -namespace), or a key of the nodes (parameter %s)",
			volume.ErrInvalid, KeySecret, KeyParameter)
	}
	found := [][]byte{[]byte(key)}
	if hasPrevious {
		found = append(found, []byte(previous))
	}
	return found, nil
}

// reveal returns the device that a volume is used by, over its raw one.
type reveal func(ctx context.Context, id volume.ID, info volume.Info, raw *blockdev.Device) (*blockdev.Device, error)

// opened finds a volume that was staged.
func (v volumes) opened(ctx context.Context, id volume.ID, _ volume.Info, raw *blockdev.Device) (*blockdev.Device, error) {
	return v.encryption.Find(ctx, id, raw)
}

// unlock opens a volume to stage it.
func (v volumes) unlock(keys [][]byte) reveal {
	return func(ctx context.Context, id volume.ID, info volume.Info, raw *blockdev.Device) (*blockdev.Device, error) {
		return v.encryption.Open(ctx, id, info.Source, raw, keys)
	}
}

// expand grows a volume, if it is in a pool that can, and returns the size that its
// user has then.
func (v volumes) expand(ctx context.Context, volumeID string, wanted volume.Range) (size uint64, ok bool, err error) {
	pool, name, ok := v.expander(volumeID)
	if !ok {
		return 0, false, nil
	}
	id, _ := volume.ParseID(volumeID)
	info, err := v.pools[id.Pool].Get(ctx, name)
	if err != nil {
		return 0, true, err
	}
	raw, err := pool.Expand(ctx, name, rawRange(wanted, info.Encryption))
	return plainSize(raw, info.Encryption), true, err
}

// resizeMapping has the mapping of a volume that is encrypted and staged take over its
// size.
func (v volumes) resizeMapping(ctx context.Context, volumeID string) error {
	id, _ := volume.ParseID(volumeID)
	info, err := v.pools[id.Pool].Get(ctx, id.Name)
	if err != nil || info.Encryption == volume.Plain {
		return err
	}
	raw, err := v.pools[id.Pool].Activate(ctx, id.Name)
	if err != nil {
		return err
	}
	defer raw.Close()
	return v.encryption.Resize(ctx, id, raw)
}

// flushMapping has what the kernel holds back of a volume that is encrypted and in use
// written to its raw device, which is what a pool copies.
func (c *controller) flushMapping(ctx context.Context, pool Pool, id volume.ID) error {
	info, err := pool.Get(ctx, id.Name)
	if errors.Is(err, volume.ErrNotFound) || err == nil && info.Encryption == volume.Plain {
		return nil // What is not there, the pool says.
	}
	if err != nil {
		return err
	}
	device, _, err := c.publisher.OpenStaged(c.identity(id.String()))
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer device.Close()
	return device.Flush()
}

// preferredSize is the size in bytes of an encrypted volume for which none is asked,
// as in the pools.
const preferredSize = 1 << 30

// rawRange returns the sizes that a pool is asked for, for those that a user asks for.
func rawRange(size volume.Range, encryption volume.Encryption) volume.Range {
	if size.Required != 0 {
		size.Required += encryption.Overhead()
	}
	if size.Limit != 0 {
		size.Limit += encryption.Overhead()
	}
	return size
}

// newRange does the same for a new volume, which must have space for more than the
// overhead. What is a copy has the size of its source where none is asked for.
func newRange(size volume.Range, encryption volume.Encryption, isCopy bool) volume.Range {
	if encryption != volume.Plain && size.Required == 0 && !isCopy {
		size.Required = preferredSize
		if size.Limit != 0 {
			size.Required = min(size.Required, size.Limit)
		}
	}
	return rawRange(size, encryption)
}

// plainSize returns what a user has of a size of a pool.
func plainSize(raw uint64, encryption volume.Encryption) uint64 {
	return raw - min(raw, encryption.Overhead())
}

// plainCapacity returns what a pool can give of volumes with an encryption.
func plainCapacity(c volume.Capacity, encryption volume.Encryption) volume.Capacity {
	smallest := plainSize(c.MinVolume, encryption)
	if smallest == 0 {
		smallest = c.MinVolume // The overhead, and the least that the pool gives.
	}
	return volume.Capacity{
		Available: plainSize(c.Available, encryption), MaxVolume: plainSize(c.MaxVolume, encryption),
		MinVolume: min(smallest, plainSize(c.MaxVolume, encryption)),
	}
}
