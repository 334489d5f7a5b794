package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Stage is StageAt for what has no targets.
func (p *Publisher) Stage(volumeID string, device *blockdev.Device, mode volume.AccessMode) error {
	return p.StageAt(volumeID, device, mode, "")
}

// StageAt records that the device is staged for a volume with the access mode, whose
// targets are all in a directory where that is known. It may be repeated, also under
// running containers, and where the records were lost meanwhile: what is published then
// is recorded again.
//
// Errors: volume.ErrInUse where the host uses the device, or it is staged as
// another volume; volume.ErrIncompatible where the volume is staged with another
// mode; volume.ErrMismatch where another device is staged and published;
// volume.ErrPrecondition for a mapping that fails all I/O (blockdev.Device.CheckWorking).
func (p *Publisher) StageAt(volumeID string, device *blockdev.Device, mode volume.AccessMode, targets string) error {
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
		return p.holdStaged(records, device)
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
	seen, err := p.sort(volumeID, device.Number(), targets)
	if err != nil {
		return err
	}
	if len(seen.own) == 0 {
		if err := device.CheckFree(); err != nil {
			return err
		}
	}
	if err := seen.check(device.Number(), mode); err != nil {
		return err
	}
	layers, err := layersOf(volumeID, device)
	if err != nil {
		return err
	}
	if err := p.record(records, staged{device.Number(), device.DiskSeq(), mode, p.bootID, volumeID}, layers); err != nil {
		return err
	}
	if err := p.recover(records, device.Number(), mode, targets); err != nil {
		return err
	}
	return p.holdStaged(records, device)
}

// record records that a device is staged, unless another volume has something of it.
func (p *Publisher) record(records records, wanted staged, layers []blockdev.Layer) error {
	p.staging.Lock()
	defer p.staging.Unlock()
	if err := p.checkOthers(wanted, layers); err != nil {
		return err
	}
	return records.write(stagedRecord, wanted.String())
}

// recover records what of the device is published in a directory of targets and not
// recorded.
func (p *Publisher) recover(records records, device linux.DeviceNumber, mode volume.AccessMode, targets string) error {
	known, err := records.publications()
	if err != nil {
		return err
	}
	lost, err := p.unrecorded(targets, device, mode, known)
	if err != nil {
		return err
	}
	for _, publication := range lost {
		if err := records.write(publicationRecord(publication.Target), publication.String()); err != nil {
			return err
		}
	}
	return nil
}

// layersOf returns what the device of a volume is, lies on and carries. Upon that of a
// pool there is nothing that another volume may be, since the pool refuses it, so the
// loop devices of the machine need not be asked.
func layersOf(volumeID string, device *blockdev.Device) ([]blockdev.Layer, error) {
	if _, ok := volume.ParseID(volumeID); !ok {
		return device.Layers()
	}
	layers := []blockdev.Layer{{Number: device.Number(), DiskSeq: device.DiskSeq()}}
	partition, err := device.Partition()
	if errors.Is(err, volume.ErrMismatch) {
		return layers, nil
	}
	return append(layers, blockdev.Layer{Number: partition.Disk, DiskSeq: device.DiskSeq()}), err
}

// checkOthers returns an error where one of the layers of a device, which is any that
// it lies on or carries too, is staged as another volume. Only modes that several
// nodes may use at once let several volumes share a device: two
// PersistentVolumes for one disk are otherwise a mistake that ends in two pods
// writing over each other.
func (p *Publisher) checkOthers(wanted staged, layers []blockdev.Layer) error {
	all, err := p.AllStaged()
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.VolumeID == wanted.volumeID || other.Mode.MultiNode() && wanted.mode.MultiNode() {
			continue
		}
		// Another disk can have the number of one that has gone.
		if !slices.ContainsFunc(layers, func(l blockdev.Layer) bool { return l.Number == other.Number && l.DiskSeq == other.DiskSeq }) {
			continue
		}
		return fmt.Errorf("%w: device %s is staged as volume %s with access mode %s; two volumes may share a device only if both have a MULTI_NODE access mode (if that volume is long gone, remove %s)",
			volume.ErrInUse, other.Number, other.VolumeID, other.Mode, p.records(other.VolumeID).dir)
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
	record, found, err := records.staged(p.bootID)
	if err != nil {
		return err
	}
	targets := filepath.Dir(wanted.Target)
	lost, err := p.unrecorded(targets, device.Number(), cmp.Or(record.mode, wanted.Mode), publications)
	if err != nil {
		return err
	}
	publications = append(publications, lost...)
	if err := admit(publications, wanted); err != nil {
		return err
	}
	if err := device.CheckWorking(); err != nil {
		return err
	}
	switch {
	case !found:
		klog.FromContext(ctx).Info("Volume is published without having been staged, staging it now", "device", device.Number())
		if err := p.StageAt(volumeID, device, wanted.Mode, targets); err != nil {
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
	for _, publication := range lost {
		if err := records.write(publicationRecord(publication.Target), publication.String()); err != nil {
			return err
		}
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
	number, err := device.Shown()
	if err != nil {
		return err
	}
	attached, err := p.sysfs.IsAttached(record.number, record.seq)
	if err != nil {
		return err
	}
	if number != record.number || number == device.Number() && device.DiskSeq() != record.seq || !attached {
		return fmt.Errorf("%w: the device %s with disk sequence number %d, which is staged as volume %s, has gone", volume.ErrNotFound, record.number, record.seq, volumeID)
	}
	return nil
}

// Unstage is UnstageAt for a volume of whose targets nothing is known.
func (p *Publisher) Unstage(volumeID string) error { return p.UnstageAt(volumeID, "") }

// UnstageAt forgets the volume, whose targets are all in a directory where that is
// known. It may be repeated. It reads the mount table: no record has to say where the
// volume is published.
//
// Errors: volume.ErrPrecondition while the volume is published.
func (p *Publisher) UnstageAt(volumeID, targets string) error {
	records := p.records(volumeID)
	publications, err := records.publications()
	if err != nil {
		return err
	}
	if len(publications) > 0 {
		return fmt.Errorf("%w: the volume is published at %s; unpublish it first", volume.ErrPrecondition, publications[0].Target)
	}
	record, found, err := records.staged(p.bootID)
	if err != nil {
		return err
	}
	if err := p.checkUnpublished(record, found, targets); err != nil {
		return err
	}
	if err := p.releaseStaged(records); err != nil {
		return err
	}
	return records.removeAll()
}
