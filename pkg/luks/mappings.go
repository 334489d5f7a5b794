package luks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Mappings are the encrypted volumes of this node that are open. Its methods may be
// called concurrently for different volumes.
type Mappings struct {
	host  *program.Host
	sysfs blockdev.Sysfs
	kdf   KDF
	// deriving is held while a key is derived: one at a time, which bounds the memory
	// that it takes.
	deriving chan struct{}
}

// New returns the mappings of this machine. Keys of the headers that are made are
// derived by kdf; of those that exist, as they say.
func New(host *program.Host, sysfs blockdev.Sysfs, kdf KDF) *Mappings {
	return &Mappings{host: host, sysfs: sysfs, kdf: kdf, deriving: make(chan struct{}, 1)}
}

// Check returns an error where this node cannot open encrypted volumes: it has no
// cryptsetup, or its kernel no device-mapper. Errors: volume.ErrPrecondition.
//
//nolint:contextcheck // The kernel answers at once.
func (m *Mappings) Check(ctx context.Context) error {
	control, err := linux.OpenMapper()
	if err != nil {
		return fmt.Errorf("%w: encrypted volumes need device-mapper: %w", volume.ErrPrecondition, err)
	}
	control.Close()
	return m.run(ctx, program.Command{Name: "cryptsetup", Args: []string{"--version"}})
}

// Open returns the device of a volume without its encryption, over its raw device,
// which the caller keeps open meanwhile. A mapping that is open already is found again,
// and takes over the size of the raw device.
//
// The first of the keys, of which there is at least one, is that of the volume; a header
// that another of them opens is changed to it. On a raw device that is blank a header is
// made.
//
// Errors: volume.ErrInvalid for a key; volume.ErrPrecondition where no key opens the
// header, what is on the device is no header, or the node has no cryptsetup;
// volume.ErrMismatch where the header is of another volume; volume.ErrInUse where the
// mapping shows another device, or somebody uses the raw one; volume.ErrNotFound where
// it has gone.
func (m *Mappings) Open(ctx context.Context, id volume.ID, source volume.Source, raw *blockdev.Device, keys [][]byte) (*blockdev.Device, error) {
	o := ownerOf(id, source)
	for _, key := range keys {
		if err := CheckKey(key); err != nil {
			return nil, err
		}
	}
	isOpen, err := m.settle(ctx, o)
	if err != nil {
		return nil, err
	}
	if isOpen {
		if err := m.Resize(ctx, id, raw); err != nil {
			return nil, err
		}
		return m.Find(ctx, id, raw)
	}
	at, err := m.prepare(ctx, o, raw, keys[0])
	if err != nil {
		return nil, err
	}
	if at.damage != nil {
		klog.FromContext(ctx).Info("A copy of the LUKS2 header is damaged, cryptsetup writes it again from the other one", "device", raw.String(), "damage", at.damage.Error())
	}
	if err := m.open(ctx, o, raw, keys); err != nil {
		return nil, err
	}
	crashpoint.Here("mapping opened")
	device, err := m.Find(ctx, id, raw)
	if err == nil && device.Size() != raw.Size()-dataOffset {
		err = fmt.Errorf("%w: %s has %d bytes, and %s without its header %d: somebody has changed the LUKS2 header", volume.ErrMismatch, device, device.Size(), raw, raw.Size()-dataOffset)
		device.Close()
	}
	if err != nil {
		return nil, errors.Join(err, m.Close(ctx, id))
	}
	return device, nil
}

// open opens the mapping by the first of the keys. A header that only another of them
// opens is changed before.
func (m *Mappings) open(ctx context.Context, o owner, raw *blockdev.Device, keys [][]byte) error {
	err := m.openWith(ctx, o, raw, keys[0])
	for _, previous := range keys[1:] {
		if !errors.Is(err, errWrongKey) {
			return err
		}
		if err = m.changeKey(ctx, raw, previous, keys[0]); err != nil {
			continue
		}
		klog.FromContext(ctx).Info("Changed the key of an encrypted volume to that which it has now", "volume", o.String(), "device", raw.String())
		err = m.openWith(ctx, o, raw, keys[0])
	}
	if errors.Is(err, errWrongKey) {
		return fmt.Errorf("%w: none of the keys given (%d) opens the LUKS2 header of %s: the secret or key file is that of another volume, was changed, or ends with a newline that it had not before; or the key slots of the header are damaged, and a backup of it has to be restored",
			volume.ErrPrecondition, len(keys), raw)
	}
	return err
}

func (m *Mappings) openWith(ctx context.Context, o owner, raw *blockdev.Device, key []byte) error {
	// With the volume key in the kernel's keyring, only who has the key could grow the
	// mapping (--disable-keyring).
	return m.cryptsetup(ctx, key, "open", "--type", "luks2", "--batch-mode", "--key-file", "-", "--disable-keyring", raw.Node().Name(), o.mapping())
}

// errWrongKey says that a key does not open a header.
var errWrongKey = errors.New("wrong key")

// The exit codes of cryptsetup (cryptsetup(8), return codes).
const (
	exitWrongKey = 2
	exitBusy     = 5
)

// changeKey has a header that is opened by the key before be opened by another one
// instead, durably or not at all. Errors: errWrongKey.
func (m *Mappings) changeKey(ctx context.Context, raw *blockdev.Device, before, after []byte) error {
	file, err := linux.MemoryFile("key", uint64(len(after)))
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // It is in memory.
	if _, err := file.WriteAt(after, 0); err != nil {
		return err
	}
	args := append([]string{"luksChangeKey", "--batch-mode", "--key-file", "-"}, m.kdf.arguments()...)
	if err := m.cryptsetup(ctx, before, append(args, raw.Node().Name(), pathOf(file))...); err != nil {
		return err
	}
	crashpoint.Here("key changed")
	return nil
}

// cryptsetup runs it with a key. Errors: errWrongKey.
func (m *Mappings) cryptsetup(ctx context.Context, key []byte, args ...string) error {
	err := m.derive(ctx, program.Command{Name: "cryptsetup", Args: args, Stdin: key})
	var exit *program.ExitError
	if errors.As(err, &exit) && exit.Code == exitWrongKey {
		return errWrongKey
	}
	return err
}

// derive runs a command that derives a key.
func (m *Mappings) derive(ctx context.Context, command program.Command) error {
	select {
	case m.deriving <- struct{}{}:
		defer func() { <-m.deriving }()
	case <-ctx.Done():
		return fmt.Errorf("wait for other encrypted volumes to be opened: %w", ctx.Err())
	}
	return m.run(ctx, command)
}

// patience bounds what cryptsetup may take, for a disk that does not answer.
const patience = 2 * time.Minute

// run runs a command to its end also when the call ends first: one that is killed
// leaves a mapping that is half made.
func (m *Mappings) run(ctx context.Context, command program.Command) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	_, err := m.host.Run(ctx, command)
	if errors.Is(err, program.ErrNotInstalled) {
		err = fmt.Errorf("%w: encrypted volumes need cryptsetup: %w", volume.ErrPrecondition, err)
	}
	return err
}

// named returns the mapping with the name of a volume. One that is not ours is an
// error. Errors: volume.ErrInUse.
func (m *Mappings) named(o owner) (info linux.MappingInfo, found bool, err error) {
	control, err := linux.OpenMapper()
	if err != nil {
		return info, false, fmt.Errorf("%w: encrypted volumes need device-mapper: %w", volume.ErrPrecondition, err)
	}
	defer control.Close()
	info, err = control.MappingNamed(o.mapping())
	if errors.Is(err, syscall.ENXIO) {
		return info, false, nil
	}
	if err != nil {
		return info, false, fmt.Errorf("look for the mapping of %s: %w", o, err)
	}
	// The form of cryptsetup's UUIDs (dm_prepare_uuid in its lib/libdevmapper.c).
	if !strings.HasPrefix(info.UUID, "CRYPT-LUKS2-") || !strings.HasSuffix(info.UUID, "-"+o.mapping()) {
		return info, false, fmt.Errorf("%w: the mapping %s (%s) is not one of cryptsetup: its UUID is %q; remove it (dmsetup remove)", volume.ErrInUse, o.mapping(), info.Number, info.UUID)
	}
	return info, true, nil
}

// settle completes, or undoes, what a cryptsetup that was killed has left half done to
// the mapping of a volume, and tells whether it is open then. Neither cryptsetup close
// nor open can do that.
//
//nolint:contextcheck // The kernel answers at once.
func (m *Mappings) settle(ctx context.Context, o owner) (isOpen bool, err error) {
	info, found, err := m.named(o)
	if err != nil || !found || info.Active && !info.Suspended {
		return found, err
	}
	verb := "resume"
	if !info.Active {
		verb = "remove"
	}
	klog.FromContext(ctx).Info("A mapping was left half done", "mapping", o.mapping(), "dmsetup", verb)
	if err := m.run(ctx, program.Command{Name: "dmsetup", Args: []string{verb, o.mapping()}}); err != nil {
		return false, fmt.Errorf("%s the mapping %s, which was left half done: %w", verb, o.mapping(), err)
	}
	return info.Active, nil
}

// Find returns the device of a volume that is open over its raw device.
//
// Errors: volume.ErrPrecondition where it is not open; volume.ErrInUse where it is
// open over another device, or shows none any more.
//
//nolint:contextcheck // The kernel answers at once.
func (m *Mappings) Find(_ context.Context, id volume.ID, raw *blockdev.Device) (*blockdev.Device, error) {
	o := ownerOf(id, volume.Source{})
	info, found, err := m.named(o)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("%w: encrypted volume %s is not open on this node; it has to be staged, which opens it with its key", volume.ErrPrecondition, id)
	}
	device, err := blockdev.OpenNumber(info.Number, m.sysfs)
	if err != nil {
		return nil, err
	}
	if err := m.verify(o, device, raw); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// verify checks that an open device is the mapping of a volume over a raw device.
func (m *Mappings) verify(o owner, device, raw *blockdev.Device) error {
	// It may have gone, and its number been given to another, before it was opened.
	info, found, err := m.named(o)
	if err != nil {
		return err
	}
	if !found || info.Number != device.Number() {
		return fmt.Errorf("%w: the mapping %s was closed meanwhile", volume.ErrAborted, o.mapping())
	}
	if err := m.checkTarget(info); err != nil {
		return err
	}
	below, err := m.sysfs.Slaves(device.Number())
	if err != nil {
		return err
	}
	if !slices.Equal(below, []linux.DeviceNumber{raw.Number()}) {
		return fmt.Errorf("%w: the mapping %s (%s) is over the device %v and not %s; end the pods that use the volume, so that it is unstaged", volume.ErrInUse, o.mapping(), device.Number(), below, raw)
	}
	return nil
}

// checkTarget returns an error unless a mapping encrypts all that it shows. Its
// status, unlike its table, does not tell the volume key.
func (m *Mappings) checkTarget(info linux.MappingInfo) error {
	control, err := linux.OpenMapper()
	if err != nil {
		return err
	}
	defer control.Close()
	targets, err := control.Status(info.Number)
	if err != nil {
		return err
	}
	if info.Suspended || len(targets) != 1 || targets[0].Type != "crypt" {
		return fmt.Errorf("%w: the mapping %s (%s) does not show the volume any more: it was revoked, or is suspended; end the pods that use the volume, so that it is unstaged and staged again", volume.ErrInUse, info.Name, info.Number)
	}
	return nil
}

// Resize has an open mapping take over the size of its raw device. It needs no key.
// Errors: those of Find.
func (m *Mappings) Resize(ctx context.Context, id volume.ID, raw *blockdev.Device) error {
	if _, err := m.settle(ctx, ownerOf(id, volume.Source{})); err != nil {
		return err
	}
	device, err := m.Find(ctx, id, raw)
	if err != nil {
		return err
	}
	defer device.Close()
	if device.Size() == raw.Size()-dataOffset {
		return nil
	}
	name := ownerOf(id, volume.Source{}).mapping()
	if err := m.run(ctx, program.Command{Name: "cryptsetup", Args: []string{"resize", "--batch-mode", name}}); err != nil {
		return fmt.Errorf("grow the mapping %s: %w", name, err)
	}
	crashpoint.Here("mapping grown")
	if err := device.Resize(); err != nil {
		return err
	}
	if device.Size() != raw.Size()-dataOffset {
		return fmt.Errorf("%w: %s has %d bytes after it was grown, and %s without its header %d", volume.ErrMismatch, device, device.Size(), raw, raw.Size()-dataOffset)
	}
	return nil
}

// Close closes the mapping of a volume, whatever has become of the device below. One
// that is not open is no error. Errors: volume.ErrInUse.
func (m *Mappings) Close(ctx context.Context, id volume.ID) error {
	o := ownerOf(id, volume.Source{})
	isOpen, err := m.settle(ctx, o)
	var noMapper *linux.MapperError
	if errors.As(err, &noMapper) {
		return nil // Nothing can be open.
	}
	if err != nil || !isOpen {
		return err
	}
	info, found, err := m.named(o)
	if err != nil {
		return err
	}
	if found {
		// A mount of its node does not keep the mapping, and records can be lost.
		if err := m.sysfs.CheckUnpublished(info.Number); err != nil {
			return fmt.Errorf("close the mapping %s: %w", o.mapping(), err)
		}
	}
	err = m.run(ctx, program.Command{Name: "cryptsetup", Args: []string{"close", "--batch-mode", o.mapping()}})
	var exit *program.ExitError
	if errors.As(err, &exit) && exit.Code == exitBusy {
		if user := m.user(info.Number); user != nil {
			return fmt.Errorf("close the mapping %s of volume %s: %w", o.mapping(), id, user)
		}
		return fmt.Errorf("%w: a process of this node has the mapping %s of volume %s open (see lsblk, and fuser on /dev/mapper/%s); end it, and the call is repeated", volume.ErrInUse, o.mapping(), id, o.mapping())
	}
	if err != nil {
		return fmt.Errorf("close the mapping %s: %w", o.mapping(), err)
	}
	crashpoint.Here("mapping closed")
	return nil
}

// user returns an error that says who has claimed a mapping, if anybody has. Errors:
// volume.ErrInUse.
func (m *Mappings) user(number linux.DeviceNumber) error {
	device, err := blockdev.OpenNumber(number, m.sysfs)
	if err != nil {
		return nil //nolint:nilerr // It has gone, or cannot be asked.
	}
	defer device.Close()
	if err := device.CheckFree(); errors.Is(err, volume.ErrInUse) {
		return err
	}
	return nil
}
