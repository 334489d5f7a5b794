package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Unpublish takes the volume away from the target: every mount there, the file
// below, and the read-only view if there was one. It needs nothing but the
// target, so it works when the device has gone, and may be repeated. A target
// in use is detached lazily: it is out of sight at once, and the kernel ends the
// mount after its last user.
//
// Errors: volume.ErrPrecondition where something else is at the target; it
// loses nothing.
func (p *Publisher) Unpublish(ctx context.Context, target Target) error {
	if err := p.takeDown(ctx, target); err != nil {
		return err
	}
	return p.records(target.VolumeID).remove(publicationRecord(target.Path))
}

func (p *Publisher) takeDown(ctx context.Context, target Target) error {
	place, err := openPlace(target.Path)
	if noFolder(err) {
		return p.sysfs.ReleaseViews(target.owner())
	}
	if err != nil {
		return fmt.Errorf("open the folder of target_path: %w", err)
	}
	defer place.Close()
	views, known, err := p.peel(ctx, place, target)
	if err != nil {
		return err
	}
	if !known {
		return p.sysfs.ReleaseViews(target.owner())
	}
	for _, minor := range views {
		if err := blockdev.ReleaseView(minor, target.owner()); err != nil {
			return err
		}
		crashpoint.Here("read-only view released")
	}
	return nil
}

// peel unmounts whatever is mounted at a place, one mount upon another, and then
// removes the file below. It returns the loop devices that are views of the
// target. They are not known where nothing is mounted, since an earlier call may
// have ended between the unmount and the release of the view, or where a mount
// could not be looked into.
func (p *Publisher) peel(ctx context.Context, place place, target Target) (views []uint32, known bool, err error) {
	logger := klog.FromContext(ctx).WithValues("target", target.Path)
	for layer := 0; ; layer++ {
		info, found, err := place.stat()
		if err != nil {
			return nil, false, fmt.Errorf("look at target_path: %w", err)
		}
		if !found {
			return views, known, nil
		}
		if !info.MountRoot {
			return views, known, place.remove(info)
		}
		isView, err := isView(place, info, target)
		if err != nil {
			logger.Error(err, "Cannot look into the target, unmounting it all the same", "device", info.Device)
		}
		known = err == nil && (known || layer == 0)
		if isView {
			views = append(views, info.Device.Minor)
		}
		err = linux.Unmount(place.dir, place.name, false)
		if errors.Is(err, syscall.EBUSY) {
			logger.Info("Target is in use, detaching it lazily", "device", info.Device)
			err = linux.Unmount(place.dir, place.name, true)
		}
		if err != nil {
			return nil, false, fmt.Errorf("unmount target_path: %w", err)
		}
		crashpoint.Here("target unmounted")
	}
}

// isView reports whether what is mounted at a place is a view of the target.
func isView(place place, info linux.FileInfo, target Target) (bool, error) {
	if !info.IsBlockDevice() || info.Device.Major != linux.LoopMajor {
		return false, nil
	}
	// It must be closed again before the unmount, which it would keep busy.
	loop, err := linux.OpenDeviceAt(place.dir, place.name)
	if blockdev.IsGone(err) {
		return false, nil // The device has gone, and a view with it.
	}
	if err != nil {
		return false, fmt.Errorf("open what is published: %w", err)
	}
	defer loop.Close()
	return blockdev.IsView(loop, target.owner())
}

// remove removes the file that a device was mounted on.
func (p place) remove(info linux.FileInfo) error {
	if !isPlain(info) {
		return p.occupied(info)
	}
	if err := linux.RemoveFile(p.dir, p.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the file at target_path: %w", err)
	}
	crashpoint.Here("target file removed")
	return nil
}
