package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
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
	records := p.records(target.VolumeID)
	_, recorded, unread := records.loops(viewRecord(target.Path), p.bootID)
	// What is published for writing shows the device itself. It is read-only where the
	// administrator made it so.
	lost := unread == nil && !recorded && !records.isWritable(target.Path)
	var views []blockdev.LoopID
	place, err := p.roots.openPlace(target.Path)
	if err == nil {
		defer place.Close()
		views, err = p.peel(ctx, place, target, lost)
	} else if noDir(err) {
		err = nil
	} else {
		err = fmt.Errorf("open the directory of target_path: %w", err)
	}
	if err := errors.Join(err, unread); err != nil {
		return err
	}
	if recorded {
		return p.releaseView(records, target.Path)
	}
	return p.releaseLost(views)
}

// isWritable reports whether a publication for writing is recorded.
func (r records) isWritable(target string) bool {
	text, err := linux.ReadLink(filepath.Join(r.dir, publicationRecord(target)))
	publication, parsed := parsePublication(text)
	return err == nil && parsed == nil && !publication.ReadOnly
}

// releaseLost ends the views that were mounted at a target of which the record was lost,
// and what holds them.
func (p *Publisher) releaseLost(views []blockdev.LoopID) error {
	var failed []error
	for _, view := range views {
		// Its holds first: then its number is its own still.
		failed = append(failed, p.sysfs.ReleaseHolds(view.Number(), p.owner), p.sysfs.ReleaseLoop(view))
	}
	return errors.Join(failed...)
}

// peel unmounts whatever is mounted at a place, one mount upon another, and then
// removes the file below. Where the record of a view was lost, it returns the loop devices
// among them that could be one.
func (p *Publisher) peel(ctx context.Context, place place, target Target, lost bool) (views []blockdev.LoopID, err error) {
	logger := klog.FromContext(ctx).WithValues("target", target.Path)
	for {
		info, found, err := place.stat()
		if err != nil {
			return nil, fmt.Errorf("look at target_path: %w", err)
		}
		if !found {
			return views, nil
		}
		if !info.MountRoot {
			return views, place.remove(info)
		}
		// Its user may have had a view show a file, or keep its driver from answering.
		var view blockdev.LoopID
		var isView bool
		if lost && info.IsBlockDevice() {
			view, isView, err = p.sysfs.ReadOnlyLoop(info.Device)
		}
		if err != nil && !errors.Is(err, volume.ErrNotFound) {
			logger.Error(err, "Cannot look into the target, unmounting it all the same", "device", info.Device)
		}
		if isView {
			views = append(views, view)
		}
		err = linux.Unmount(place.dir, place.name, false)
		if errors.Is(err, syscall.EBUSY) {
			logger.Info("Target is in use, detaching it lazily", "device", info.Device)
			err = linux.Unmount(place.dir, place.name, true)
		}
		if err != nil {
			return nil, fmt.Errorf("unmount target_path: %w", err)
		}
		crashpoint.Here("target unmounted")
	}
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
