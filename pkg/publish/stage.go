package publish

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Stage records that the device is staged for a volume with the access mode. It
// may be repeated, also under running containers.
//
// Errors: volume.ErrInUse where the host uses the device, or it is staged as
// another volume; volume.ErrIncompatible where the volume is staged with another
// mode; volume.ErrMismatch where another device is staged and published;
// volume.ErrPrecondition for a mapping that fails all I/O (blockdev.Device.CheckWorking).
func (p *Publisher) Stage(volumeID string, device *blockdev.Device, mode volume.AccessMode) error {
	if err := device.CheckWorking(); err != nil {
		return err
	}
	records := p.records(volumeID)
	record, found, err := records.staged(p.bootID)
	if err != nil {
		return err
	}
	if found && record.isSame(device) {
		if record.mode != mode {
			return fmt.Errorf("%w: the volume is staged with access mode %s, not %s; unstage it first", volume.ErrIncompatible, record.mode, mode)
		}
		return nil
	}
	if found {
		publications, err := records.publications()
		if err != nil {
			return err
		}
		if len(publications) > 0 {
			return mismatch(record, device, publications)
		}
	}
	if err := device.CheckFree(); err != nil {
		return err
	}
	p.staging.Lock()
	defer p.staging.Unlock()
	wanted := staged{device.Number(), device.DiskSeq(), mode, p.bootID, volumeID}
	if err := p.checkOthers(wanted); err != nil {
		return err
	}
	return records.write(stagedRecord, wanted.String())
}

// checkOthers returns an error where the device, the disk that it is a partition
// of, or a partition of it, is staged as another volume. Only modes that several
// nodes may use at once let several volumes share a device: two
// PersistentVolumes for one disk are otherwise a mistake that ends in two pods
// writing over each other.
func (p *Publisher) checkOthers(wanted staged) error {
	names, err := readNames(p.state)
	if err != nil {
		return fmt.Errorf("read what is staged: %w", err)
	}
	for _, name := range names {
		other, found, err := records{filepath.Join(p.state, name)}.staged(p.bootID)
		if err != nil {
			return err
		}
		// Partitions have the sequence number of their disk.
		if !found || other.seq != wanted.seq || other.volumeID == wanted.volumeID || other.mode.MultiNode() && wanted.mode.MultiNode() {
			continue
		}
		overlap, err := p.sysfs.Overlap(other.number, wanted.number)
		if err != nil {
			return err
		}
		if !overlap {
			continue
		}
		return fmt.Errorf("%w: device %s is staged as volume %s with access mode %s; two volumes may share a device only if both have a MULTI_NODE access mode (if that volume is long gone, remove %s)",
			volume.ErrInUse, other.number, other.volumeID, other.mode, filepath.Join(p.state, name))
	}
	return nil
}

// Admit decides whether the device may be published as wanted, beside what is
// published of the volume already, and records the publication. A volume that
// was not staged in this boot is staged: after a reboot, kubelet may publish
// without staging.
//
// Errors: volume.ErrMismatch where the device is not the one that was staged;
// volume.ErrInUse where it is published nowhere and the host uses it;
// volume.ErrIncompatible and volume.ErrPrecondition by the tables of the CSI
// specification.
func (p *Publisher) Admit(ctx context.Context, volumeID string, device *blockdev.Device, wanted Publication) error {
	records := p.records(volumeID)
	publications, err := records.publications()
	if err != nil {
		return err
	}
	if err := admit(publications, wanted); err != nil {
		return err
	}
	if err := device.CheckWorking(); err != nil {
		return err
	}
	record, found, err := records.staged(p.bootID)
	switch {
	case err != nil:
		return err
	case !found:
		klog.FromContext(ctx).Info("Volume is published without having been staged, staging it now", "device", device.Number())
		if err := p.Stage(volumeID, device, wanted.Mode); err != nil {
			return err
		}
	case !record.isSame(device):
		return mismatch(record, device, publications)
	case len(publications) == 0:
		// The host may have begun to use it since it was staged. Once it is
		// published, a claim is the business of the pods that have it.
		if err := device.CheckFree(); err != nil {
			return err
		}
	}
	if slices.Contains(publications, wanted) {
		return nil
	}
	return records.write(publicationRecord(wanted.Target), wanted.String())
}

func mismatch(record staged, device *blockdev.Device, publications []Publication) error {
	remedy := "unstage the volume and stage it again"
	if len(publications) > 0 {
		remedy = fmt.Sprintf("delete the pods that use it first (it is published at %s)", publications[0].Target)
	}
	return fmt.Errorf("%w: device %s with disk sequence number %d was staged, but the volume is now %s with disk sequence number %d: the disk was replaced or attached again; %s",
		volume.ErrMismatch, record.number, record.seq, device, device.DiskSeq(), remedy)
}

// IsStaged reports whether the volume was staged in this boot.
func (p *Publisher) IsStaged(volumeID string) (bool, error) {
	_, found, err := p.records(volumeID).staged(p.bootID)
	return found, err
}

// OpenStaged opens the device that is staged as the volume, and tells with which
// access mode it is. The caller closes it.
//
// Errors: volume.ErrNotFound where the volume is not staged, or its device has
// gone; volume.ErrMismatch where another device has the number by now.
func (p *Publisher) OpenStaged(volumeID string) (*blockdev.Device, volume.AccessMode, error) {
	record, found, err := p.records(volumeID).staged(p.bootID)
	if err != nil {
		return nil, "", err
	}
	if !found {
		return nil, "", fmt.Errorf("%w: volume %s is not staged on this node", volume.ErrNotFound, volumeID)
	}
	device, err := blockdev.OpenNumber(record.number, p.sysfs)
	if err != nil {
		return nil, "", err
	}
	if !record.isSame(device) {
		device.Close()
		return nil, "", mismatch(record, device, nil)
	}
	return device, record.mode, nil
}

// CheckStaged returns an error unless a device that was found where the volume is
// published is what was staged, or a read-only view of it, and is still there: the
// node of a disk that has gone opens whatever has its number by then. Of a volume that
// is not staged nothing is known. Errors: volume.ErrNotFound.
func (p *Publisher) CheckStaged(volumeID string, device *blockdev.Device) error {
	record, found, err := p.records(volumeID).staged(p.bootID)
	if err != nil || !found {
		return err
	}
	number, seq, err := device.Shown()
	if err != nil {
		return err
	}
	attached, err := p.sysfs.IsAttached(number, seq)
	if err != nil {
		return err
	}
	if number != record.number || seq != record.seq || !attached {
		return fmt.Errorf("%w: the device %s with disk sequence number %d, which is staged as volume %s, has gone", volume.ErrNotFound, record.number, record.seq, volumeID)
	}
	return nil
}

// Unstage forgets the volume. It may be repeated. Errors: volume.ErrPrecondition
// while the volume is published.
func (p *Publisher) Unstage(volumeID string) error {
	records := p.records(volumeID)
	publications, err := records.publications()
	if err != nil {
		return err
	}
	if len(publications) > 0 {
		return fmt.Errorf("%w: the volume is published at %s; unpublish it first", volume.ErrPrecondition, publications[0].Target)
	}
	return records.removeAll()
}
