package driver

import (
	"context"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Pool makes and finds the volumes of one kind on this node. What exists it reads
// from the medium, so that a plugin that was reinstalled knows it again.
//
// Its methods may be called concurrently, also for one volume: the driver locks
// volumes by their IDs, but other calls of a pool concern all of them. Each may be
// repeated, also after the process died between any two of its steps.
type Pool interface {
	// Create makes a volume, or returns the one of this name that is there
	// already where it is as the spec says. It goes on in the background when ctx
	// ends first; a repeated call joins it.
	//
	// Errors: volume.ErrInvalid for a parameter; volume.ErrIncompatible where
	// the volume of this name is another; volume.ErrOutOfRange for a size that
	// cannot be had whatever is free; volume.ErrExhausted where there is not
	// enough space now; volume.ErrNotFound for a source that is not there;
	// volume.ErrInUse for a source that cannot be copied now.
	Create(ctx context.Context, spec volume.Spec) (volume.Info, error)
	// Get returns a volume. Errors: volume.ErrNotFound.
	Get(ctx context.Context, name string) (volume.Info, error)
	// List returns all volumes in no order.
	List(ctx context.Context) ([]volume.Info, error)
	// Delete removes a volume and all that was written to it; one that does not
	// exist is no error. Its space is offered again once nobody can read from it
	// what was there. Errors: volume.ErrInUse while it is in use, or published as the
	// kernel shows it (blockdev.Device.CheckUnpublished): records can be lost.
	Delete(ctx context.Context, name string) error
	// Capacity returns what can be made with the parameters. Errors:
	// volume.ErrInvalid for a parameter.
	Capacity(ctx context.Context, parameters map[string]string) (volume.Capacity, error)
	// Activate returns the device of a volume, open and verified to be that of
	// the volume; the caller closes it. The device is made where there is none
	// yet. Errors: volume.ErrNotFound where there is no such volume, or its disk
	// has gone; volume.ErrMismatch; volume.ErrExhausted.
	Activate(ctx context.Context, name string) (*blockdev.Device, error)
	// Deactivate undoes Activate for a volume that nobody uses any more. A volume
	// that does not exist, or has no device, is no error. Errors: volume.ErrInUse where
	// the kernel shows that it is published.
	Deactivate(ctx context.Context, name string) error
}

// owner is a pool that knows which devices are its own, also of volumes that are not
// staged.
type owner interface {
	// CheckForeign returns an error where one of the layers is the pool's: a disk of it,
	// a device of a volume, or what these lie on. Facts of the kernel and what the pool
	// knows decide; names and bytes can only refuse more. It may be called concurrently.
	// Errors: volume.ErrInUse.
	CheckForeign(ctx context.Context, layers []blockdev.Layer) error
}

// expander is a pool whose volumes can grow while they are in use.
type expander interface {
	// Expand grows a volume to a size in the range, and its device where it has
	// one, and returns the size. A volume that is large enough is left as it is.
	// Errors: volume.ErrNotFound; volume.ErrOutOfRange for a size that cannot be
	// had whatever is free; volume.ErrExhausted where there is not enough now.
	Expand(ctx context.Context, name string, size volume.Range) (uint64, error)
}

// snapshotter is a pool that can make snapshots of volumes, and volumes of
// snapshots and volumes.
type snapshotter interface {
	// CreateSnapshot makes a snapshot of a volume, or returns the one of this
	// name that is there already. Errors: volume.ErrNotFound for the volume;
	// volume.ErrIncompatible where the snapshot of this name is of another
	// volume; volume.ErrExhausted; volume.ErrInUse where the volume cannot be
	// copied now.
	CreateSnapshot(ctx context.Context, name, of string) (volume.Snapshot, error)
	// DeleteSnapshot removes a snapshot; one that does not exist is no error.
	DeleteSnapshot(ctx context.Context, name string) error
	// GetSnapshot returns a snapshot. Errors: volume.ErrNotFound.
	GetSnapshot(ctx context.Context, name string) (volume.Snapshot, error)
	// ListSnapshots returns all snapshots in no order.
	ListSnapshots(ctx context.Context) ([]volume.Snapshot, error)
}

// reporter is a pool that knows more of its health, and of that of its volumes, than
// their devices tell. What sysfs tells of a device, whoever asks finds by itself.
//
// Nothing is written, no device is made, and nothing is read from a disk that may not
// answer, as far as that can be helped: who asks does not wait for it for ever, and
// asks again only once it has returned.
type reporter interface {
	// Health returns what is wrong with the pool, and the devices that it lies on.
	Health(ctx context.Context) (conditions []volume.Condition, devices []linux.DeviceNumber, err error)
	// VolumeHealth returns what is wrong with a volume, and its device, or what it
	// lies on where it has no device now. What Health says and concerns the volume is
	// part of it. Errors: volume.ErrNotFound where there is no such volume, which is
	// not said of one on a disk that has gone.
	VolumeHealth(ctx context.Context, name string) (conditions []volume.Condition, devices []linux.DeviceNumber, err error)
	// Missing returns the names of volumes that List does not return, since they are
	// damaged, or the disks that they are on have gone.
	Missing() []string
}
