package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Publish mounts the device on the target. With readOnly, what is mounted is a
// read-only view of the device, for which the kernel refuses every write while
// the device stays writable for its other users.
//
// It may be repeated; a target that a crash left half made is completed. What
// was made is undone where it fails.
//
// Errors: volume.ErrIncompatible where the target shows another device, or this
// one with another readOnly; volume.ErrPrecondition where something else is at
// the target, its directory is missing, or the device is read-only and readOnly is
// false; volume.ErrExhausted where there is no loop device for a view.
func (p *Publisher) Publish(ctx context.Context, device *blockdev.Device, target Target, readOnly bool) error {
	place, err := p.roots.openPlace(target.Path)
	if noDir(err) {
		return fmt.Errorf("%w: the directory of target_path %s does not exist; the caller has to make it", volume.ErrPrecondition, target.Path)
	}
	if err != nil {
		return fmt.Errorf("open the directory of target_path: %w", err)
	}
	defer place.Close()
	info, found, err := place.stat()
	if err != nil {
		return fmt.Errorf("look at target_path: %w", err)
	}
	if found && isPublished(info) {
		return p.verify(place, device, target, readOnly)
	}
	if found && !isPlain(info) {
		return place.occupied(info)
	}
	if err := p.mount(place, device, target, readOnly); err != nil {
		return errors.Join(err, p.Unpublish(ctx, target))
	}
	return nil
}

// mount publishes at a place where there is nothing, or an empty file.
func (p *Publisher) mount(place place, device *blockdev.Device, target Target, readOnly bool) error {
	if readOnly {
		view, err := p.makeView(device, target)
		if err != nil {
			return err
		}
		defer view.Close()
		device = view
	} else if err := checkWritable(device); err != nil {
		return err
	}
	if err := linux.CreateFile(place.dir, place.name); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the file at target_path: %w", err)
	}
	crashpoint.Here("target file made")
	file, err := linux.OpenPathAt(place.dir, place.name)
	if err != nil {
		return fmt.Errorf("open the file at target_path: %w", err)
	}
	defer file.Close()
	if err := linux.BindFile(device.Node(), file); err != nil {
		return fmt.Errorf("mount %s on %s: %w", device, target.Path, err)
	}
	crashpoint.Here("device mounted on target")
	info, _, err := place.stat()
	if err != nil {
		return fmt.Errorf("verify what is published: %w", err)
	}
	if !isPublished(info) || info.Device != device.Number() {
		return fmt.Errorf("verify what is published: %s shows %s %s, not device %s; another program works on it",
			target.Path, linux.TypeName(info.Type), info.Device, device.Number())
	}
	return nil
}

func checkWritable(device *blockdev.Device) error {
	readOnly, err := device.ReadOnly()
	if err != nil {
		return err
	}
	if readOnly {
		return fmt.Errorf("%w: %s is read-only; make it writable (blockdev --setrw, write protection), or use the volume read-only",
			volume.ErrPrecondition, device)
	}
	return nil
}

// verify checks that what is published at a place is what is asked for again.
func (p *Publisher) verify(place place, device *blockdev.Device, target Target, readOnly bool) error {
	node, err := linux.OpenPathAt(place.dir, place.name)
	if err != nil {
		return fmt.Errorf("open what is published: %w", err)
	}
	published, err := blockdev.OpenNode(node, p.sysfs)
	if err != nil {
		return fmt.Errorf("what is published at %s: %w", target.Path, err)
	}
	defer published.Close()
	isView, err := p.isView(published, target)
	if err != nil {
		return err
	}
	switch {
	case isView && !readOnly:
		return fmt.Errorf("%w: the volume is published read-only at %s; unpublish it first to publish it for writing",
			volume.ErrIncompatible, target.Path)
	case isView:
		err := p.restoreView(published, device, target)
		if errors.Is(err, volume.ErrIncompatible) {
			return fmt.Errorf("%w; unpublish it first", err)
		}
		return err
	case published.Number() != device.Number():
		return fmt.Errorf("%w: %s shows device %s, not %s; unpublish it first", volume.ErrIncompatible, target.Path, published.Number(), device)
	case readOnly:
		return fmt.Errorf("%w: the volume is published for writing at %s; unpublish it first to publish it read-only",
			volume.ErrIncompatible, target.Path)
	}
	return nil
}

// isView reports whether what is mounted at a target is the read-only view that is
// recorded for it, or, where that record was lost, could be one.
func (p *Publisher) isView(published *blockdev.Device, target Target) (bool, error) {
	if !published.IsLoop() {
		return false, nil
	}
	is, found, err := p.records(target.VolumeID).loops(viewRecord(target.Path), p.bootID)
	if err != nil || found {
		return found && is.number == published.Number(), err
	}
	shown, err := published.Shown()
	return shown != published.Number(), err
}
