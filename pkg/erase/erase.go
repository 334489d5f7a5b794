// Package erase destroys all that is on a disk, so that a pool can adopt it, or that
// it can be given away.
//
// Rules. The disk is claimed (O_EXCL) from before it is looked at until after it is
// wiped: what is in use, by the host or by a pool of the plugin, cannot be claimed, and
// what is claimed no pool adopts, whether the plugin runs or not. Where it is wiped is
// what was looked at, by one descriptor. It is wiped from its end to its start, so that
// what is on it, and keeps pools away, stays until the last.
package erase

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/signature"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Disk is a disk that is claimed to be erased. Close it after use.
type Disk struct {
	// Facts are what sysfs tells of it.
	Facts blockdev.Disk
	// Contents say in words what is on it; none: nothing that is known.
	Contents []string
	// Pool is the pool that has claimed it, empty where none has, and Volumes are the
	// names of the volumes on it.
	Pool    string
	Volumes []string

	device *blockdev.Device
	raw    *linux.Raw
	sysfs  blockdev.Sysfs
}

// Open claims the whole disk whose node is at a path, and looks at what is on it.
//
// Errors: volume.ErrNotFound; volume.ErrInvalid where it is a partition, or no block
// device; volume.ErrInUse where anybody uses it, or a part of it;
// volume.ErrPrecondition where it is read-only.
func Open(path string, sysfs blockdev.Sysfs) (*Disk, error) {
	device, err := blockdev.Open(path, sysfs)
	if err != nil {
		return nil, err
	}
	d := &Disk{device: device, sysfs: sysfs}
	if err := d.open(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Disk) open() error {
	if partition, err := d.device.Partition(); err == nil {
		return fmt.Errorf("%w: %s is a partition of disk %s; name the whole disk, or delete the partition with a partitioning tool", volume.ErrInvalid, d.device, partition.Disk)
	} else if !errors.Is(err, volume.ErrMismatch) {
		return err
	}
	all, err := d.sysfs.Disks()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all, func(o blockdev.Disk) bool { return o.Number == d.device.Number() && o.DiskSeq == d.device.DiskSeq() })
	if at < 0 {
		return fmt.Errorf("%w: %s was replaced while it was looked at", volume.ErrMismatch, d.device)
	}
	d.Facts = all[at]
	if d.Facts.Err != nil {
		return d.Facts.Err
	}
	if d.Facts.ReadOnly {
		return fmt.Errorf("%w: %s is read-only", volume.ErrPrecondition, d.device)
	}
	return d.claim()
}

func (d *Disk) claim() error {
	claim, claimErr := disk.ReadClaim(d.Facts, d.sysfs)
	if claimErr == nil {
		d.Pool, d.Volumes = claim.Pool, claim.Volumes
	}
	var err error
	d.raw, err = d.device.Raw(linux.RawWrite | linux.RawExclusive)
	if errors.Is(err, volume.ErrInUse) && d.Pool != "" {
		return fmt.Errorf("%w; the pool %s has it: if the plugin runs, take the disk out of the pool (disk.exclude in its configuration) and restart it first", err, d.Pool)
	}
	if err != nil {
		return err
	}
	// Whoever has a node mounted, or a loop device over it, has no claim.
	if err := d.device.CheckUnexposed(); err != nil {
		return err
	}
	findings, err := signature.Find(d.raw, int64(d.Facts.Size)) //nolint:gosec // Disks have at most 2^63 bytes.
	if err != nil {
		d.Contents = append(d.Contents, fmt.Sprintf("what cannot be read (%v)", err))
	}
	for _, finding := range findings {
		d.Contents = append(d.Contents, finding.String())
	}
	return nil
}

// Close gives the disk back.
func (d *Disk) Close() {
	if d.raw != nil {
		d.raw.Close()
	}
	d.device.Close()
}

// chunk is how many bytes are wiped by one call.
const chunk = 64 << 20

// Erase wipes the whole disk, and tells how many bytes are done, from the end.
//
// Errors: volume.ErrInUse where a partition is open, and nothing was wiped; that of ctx
// where it ends first, and the beginning of the disk is as it was.
func (d *Disk) Erase(ctx context.Context, method blockdev.WipeMethod, tell func(done uint64)) error {
	if err := d.forgetPartitions(); err != nil {
		return err
	}
	for left := d.Facts.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s is wiped from byte %d to its end; what is before is as it was, so no pool adopts it; wipe it again: %w", d.Facts.NodePath, left, err)
		}
		size := min(left, chunk)
		if err := blockdev.Wipe(d.raw, method, left-size, size); err != nil {
			return err
		}
		left -= size
		tell(d.Facts.Size - left)
	}
	return nil
}

// forgetPartitions makes the kernel forget the partitions of the disk, which proves
// that nobody has one open. Where one is, they are as they were.
func (d *Disk) forgetPartitions() error {
	partitions, err := d.sysfs.Partitions(d.Facts.Number)
	if err != nil {
		return err
	}
	for i, partition := range partitions {
		err := d.device.DeletePartition(partition.Index)
		if err == nil {
			continue
		}
		errs := []error{err}
		for _, gone := range partitions[:i] {
			errs = append(errs, d.device.AddPartition(gone.Index, gone.Start, gone.Size))
		}
		return errors.Join(errs...)
	}
	return nil
}

// Methods are the ways to wipe by their names.
var Methods = map[string]blockdev.WipeMethod{"discard": blockdev.WipeDiscard, "zero": blockdev.WipeZero, "secure": blockdev.WipeSecure}
