package driver

import (
	"cmp"
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// NodeStageVolume verifies the device and records which one it is. Nothing is
// mounted, and nothing put into the staging directory, which is kubelet's: a raw
// device needs no place that all pods share.
func (n *node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	mode, err := parseCapability(req.GetVolumeCapability())
	if err := cmp.Or(checkVolumeID(req.GetVolumeId()), n.paths.check("staging_target_path", req.GetStagingTargetPath()), err); err != nil {
		return nil, err
	}
	volumeID := n.identity(req.GetVolumeId())
	unlock, err := n.inflight.Lock(volumeID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	err = n.stage(ctx, volumeID, req, mode)
	n.reports.monitor.NoteOpening(volumeID, err)
	return &csi.NodeStageVolumeResponse{}, err
}

// stage opens the device, with its key where it is encrypted, and records it. What it
// opened is given up where it fails: no NodeUnstageVolume may follow.
func (n *node) stage(ctx context.Context, volumeID string, req *csi.NodeStageVolumeRequest, mode volume.AccessMode) error {
	wanted, _, err := splitEncryption(req.GetVolumeContext())
	if err != nil {
		return err
	}
	keys, err := n.chooseKeys(wanted, req.GetSecrets())
	if err != nil {
		return err
	}
	staged, err := n.publisher.IsStaged(volumeID)
	if err != nil {
		return err
	}
	device, err := n.open(ctx, volumeID, req.GetVolumeContext(), n.unlock(keys))
	if err != nil {
		return errors.Join(err, n.giveUp(ctx, volumeID, staged || !wasOpened(err)))
	}
	defer device.Close()
	err = n.checkNamed(ctx, volumeID, device)
	if err == nil {
		err = n.publisher.StageAt(volumeID, device, mode, kubelet.TargetDir(req.GetStagingTargetPath())) //nolint:contextcheck // The kernel answers at once.
	}
	if err != nil {
		return errors.Join(err, n.giveUp(ctx, volumeID, staged))
	}
	return nil
}

// giveUp closes a volume that could not be staged, unless it is to be kept. One that is
// in use, whatever the records say, is left as it is.
func (n *node) giveUp(ctx context.Context, volumeID string, keep bool) error {
	if keep {
		return nil
	}
	err := n.close(ctx, volumeID)
	if errors.Is(err, volume.ErrInUse) {
		klog.FromContext(ctx).Info("Volume that could not be staged is in use, its device stays", "reason", err.Error())
		return nil
	}
	return err
}

// checkNamed returns an error where a device that an administrator names for a volume
// is something of a pool. It is seen when the device is staged first, and was seen of
// one that is staged. Errors: volume.ErrInUse.
func (n *node) checkNamed(ctx context.Context, volumeID string, device *blockdev.Device) error {
	if _, ok := volume.ParseID(volumeID); ok {
		return nil
	}
	if staged, err := n.publisher.IsStaged(volumeID); err != nil || staged {
		return err
	}
	return n.checkForeign(ctx, device)
}

// NodeUnstageVolume forgets the device, and gives it up, once no running container
// has it.
func (n *node) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := cmp.Or(checkVolumeID(req.GetVolumeId()), n.paths.check("staging_target_path", req.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	volumeID := n.identity(req.GetVolumeId())
	unlock, err := n.inflight.Lock(volumeID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.CheckReleased(ctx, volumeID); err != nil {
		return nil, err
	}
	if err := n.publisher.UnstageAt(volumeID, kubelet.TargetDir(req.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, n.close(ctx, volumeID)
}
