package publish

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// What is published is a fact of the kernel, and records can be lost: here it is asked
// for by the number of the device (docs/adr/0020-lost-records.md).

// unrecorded returns what of the device is published in the directory of a volume's
// targets, and is not among the publications. Where kubelet has all targets of a volume
// side by side, that costs as much as the volume has pods here; elsewhere nothing is
// looked at. The publications have the mode, and no arguments.
func (p *Publisher) unrecorded(dir string, device linux.DeviceNumber, mode volume.AccessMode, known []Publication) ([]Publication, error) {
	if !kubelet.IsTarget(filepath.Join(dir, "pod")) {
		return nil, nil
	}
	names, err := linux.ReadNames(dir)
	if noDir(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("see what is published beside the target: %w", err)
	}
	var found []Publication
	for _, name := range names {
		target := filepath.Join(dir, name)
		if slices.ContainsFunc(known, func(one Publication) bool { return one.Target == target }) {
			continue
		}
		is, readOnly, err := p.shows(target, device)
		if err != nil {
			return nil, err
		}
		if is {
			found = append(found, Publication{Target: target, Mode: mode, ReadOnly: readOnly}.recovered())
		}
	}
	return found, nil
}

// shows reports whether the device, or a loop device over it, is mounted at a target.
// With the zero number it reports whether any device is.
func (p *Publisher) shows(target string, number linux.DeviceNumber) (is, readOnly bool, err error) {
	place, err := p.roots.openPlace(target)
	if noDir(err) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("see what is published at %s: %w", target, err)
	}
	defer place.Close()
	info, found, err := place.stat()
	if err != nil || !found || !isPublished(info) {
		return false, false, err
	}
	if info.Device == number || number == (linux.DeviceNumber{}) {
		return true, false, nil
	}
	return p.sysfs.ViewOf(info.Device, number)
}

// mounted are the places where a device is mounted, sorted by whose they are.
type mounted struct {
	// own are of the volume, unknown of nobody that a record names.
	own, unknown []blockdev.Mounted
	// shared are publications of other volumes.
	shared []Publication
}

// sort asks the kernel where the device is mounted, for a volume whose targets are in a
// directory. It reads the mount table.
func (p *Publisher) sort(volumeID string, device linux.DeviceNumber, dir string) (found mounted, err error) {
	places, err := p.sysfs.Mounted(device)
	if err != nil || len(places) == 0 {
		return mounted{}, err
	}
	others, err := p.others(volumeID)
	if err != nil {
		return mounted{}, err
	}
	for _, place := range places {
		owner := slices.IndexFunc(others, func(one Publication) bool { return isAt(place.Path, one.Target) })
		switch {
		case isOf(place.Path, dir):
			found.own = append(found.own, place)
		case owner >= 0:
			found.shared = append(found.shared, others[owner])
		default:
			found.unknown = append(found.unknown, place)
		}
	}
	return found, nil
}

// check returns an error where the device is not the volume's alone, and may not be
// shared. Errors: volume.ErrInUse.
func (m mounted) check(device linux.DeviceNumber, mode volume.AccessMode) error {
	for _, place := range m.unknown {
		return fmt.Errorf("%w: device %s is published at %s, and no record says as which volume; unpublish it there first (unmount it, if nobody uses it)",
			volume.ErrInUse, device, place.Path)
	}
	for _, other := range m.shared {
		if !other.Mode.MultiNode() || !mode.MultiNode() {
			return fmt.Errorf("%w: device %s is published at %s as another volume, with access mode %s; two volumes may share a device only if both have a MULTI_NODE access mode",
				volume.ErrInUse, device, other.Target, other.Mode)
		}
	}
	return nil
}

// others returns what is published of other volumes, by the records.
func (p *Publisher) others(volumeID string) ([]Publication, error) {
	all, err := allRecords(p.state, p.roots)
	if err != nil {
		return nil, err
	}
	var found []Publication
	for _, records := range all {
		if records.dir == p.records(volumeID).dir {
			continue
		}
		publications, err := records.publications()
		if err != nil {
			return nil, err
		}
		found = append(found, publications...)
	}
	return found, nil
}

// isOf reports whether a mount point is a target in a directory, or kubelet's own mount of
// what is there. The mount table has no links.
func isOf(path, dir string) bool {
	if dir == "" {
		return false
	}
	return isAt(path, filepath.Join(dir, filepath.Base(path)))
}

// isAt reports whether a mount point is the target, or kubelet's own mount of it.
func isAt(path, target string) bool {
	dir, err := filepath.EvalSymlinks(filepath.Dir(target))
	if err != nil {
		dir = filepath.Dir(target)
	}
	target = filepath.Join(dir, filepath.Base(target))
	return path == target || kubelet.IsTarget(target) && path == kubelet.MapOf(target)
}

// checkUnpublished returns an error where the kernel shows the device of a volume that
// is to be forgotten at a target. Of a volume that no record knows, the targets are
// looked at instead. Errors: volume.ErrPrecondition.
func (p *Publisher) checkUnpublished(record staged, found bool, dir string) error {
	if !found {
		left, err := p.unrecorded(dir, linux.DeviceNumber{}, "", nil)
		if err != nil || len(left) == 0 {
			return err
		}
		return fmt.Errorf("%w: the volume is published at %s, though its record was lost; unpublish it first", volume.ErrPrecondition, left[0].Target)
	}
	// Another disk can have the number of one that has gone.
	attached, err := p.sysfs.IsAttached(record.number, record.seq)
	if err != nil || !attached {
		return err
	}
	left, err := p.sort(record.volumeID, record.number, "")
	if err != nil || len(left.unknown) == 0 {
		return err
	}
	return fmt.Errorf("%w: device %s of the volume is mounted at %s, though no record says so; unpublish it first (unmount it, if nobody uses it)",
		volume.ErrPrecondition, record.number, left.unknown[0].Path)
}
