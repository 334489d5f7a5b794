package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// TopologyKey is the topology segment, and so the label, that holds the name of
// the node a volume is on.
const TopologyKey = "topology.rawblock.dev/node"

// devices opens the device of a volume.
type devices interface {
	// Open returns the device that the attributes of a volume describe, open
	// and verified; the caller closes it. It may be called concurrently.
	//
	// Errors: volume.ErrInvalid, volume.ErrNotFound, volume.ErrMismatch.
	Open(ctx context.Context, attributes map[string]string) (*blockdev.Device, error)
}

// node is the CSI Node service.
type node struct {
	csi.UnimplementedNodeServer
	id         string
	maxVolumes int64
	paths      kubeletDir
	devices    devices
	publisher  *publish.Publisher
	sysfs      blockdev.Sysfs
	inflight   inflight.Names
}

// NodeStageVolume verifies the device and records which one it is. Nothing is
// mounted, and nothing put into the staging folder, which is kubelet's: a raw
// device needs no place that all pods share.
func (n *node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	mode, err := parseCapability(req.GetVolumeCapability())
	if err := cmp.Or(checkVolumeID(req.GetVolumeId()), n.paths.check("staging_target_path", req.GetStagingTargetPath()), err); err != nil {
		return nil, err
	}
	unlock, err := n.inflight.Lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	device, err := n.devices.Open(ctx, req.GetVolumeContext())
	if err != nil {
		return nil, err
	}
	defer device.Close()
	return &csi.NodeStageVolumeResponse{}, n.publisher.Stage(req.GetVolumeId(), device, mode)
}

// NodeUnstageVolume forgets the device.
func (n *node) NodeUnstageVolume(_ context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := cmp.Or(checkVolumeID(req.GetVolumeId()), n.paths.check("staging_target_path", req.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	unlock, err := n.inflight.Lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	return &csi.NodeUnstageVolumeResponse{}, n.publisher.Unstage(req.GetVolumeId())
}

// NodePublishVolume verifies the device, decides whether it may be published
// here, and mounts its node on the target.
func (n *node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	wanted, err := n.parsePublish(req)
	if err != nil {
		return nil, err
	}
	unlock, err := n.inflight.Lock(req.GetVolumeId(), wanted.Target)
	if err != nil {
		return nil, err
	}
	defer unlock()
	device, err := n.devices.Open(ctx, req.GetVolumeContext())
	if err != nil {
		return nil, err
	}
	defer device.Close()
	if err := n.publisher.Admit(ctx, req.GetVolumeId(), device, wanted); err != nil {
		return nil, err
	}
	target := publish.Target{VolumeID: req.GetVolumeId(), Path: wanted.Target}
	return &csi.NodePublishVolumeResponse{}, n.publisher.Publish(ctx, device, target, wanted.ReadOnly)
}

func (n *node) parsePublish(req *csi.NodePublishVolumeRequest) (publish.Publication, error) {
	mode, err := parseCapability(req.GetVolumeCapability())
	if err := cmp.Or(checkVolumeID(req.GetVolumeId()), n.paths.check("target_path", req.GetTargetPath()), err); err != nil {
		return publish.Publication{}, err
	}
	if req.GetStagingTargetPath() == "" {
		return publish.Publication{}, fmt.Errorf("%w: staging_target_path is missing; stage the volume first", volume.ErrPrecondition)
	}
	if err := n.paths.check("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return publish.Publication{}, err
	}
	return publish.Publication{
		Target:    req.GetTargetPath(),
		Mode:      mode,
		ReadOnly:  req.GetReadonly() || mode.ReadOnly(),
		Arguments: hashArguments(req.GetVolumeContext(), req.GetPublishContext()),
	}, nil
}

// NodeUnpublishVolume takes the volume away from the target. It needs neither
// the device nor the staging folder.
func (n *node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := cmp.Or(checkVolumeID(req.GetVolumeId()), n.paths.check("target_path", req.GetTargetPath())); err != nil {
		return nil, err
	}
	unlock, err := n.inflight.Lock(req.GetVolumeId(), req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	defer unlock()
	target := publish.Target{VolumeID: req.GetVolumeId(), Path: req.GetTargetPath()}
	return &csi.NodeUnpublishVolumeResponse{}, n.publisher.Unpublish(ctx, target)
}

// NodeGetVolumeStats reports the size of the device. What is used of a raw
// device only its user knows, so it is left out.
func (n *node) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	device, err := n.openVolumePath(req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	defer device.Close()
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{
		Unit:  csi.VolumeUsage_BYTES,
		Total: int64(device.Size()), //nolint:gosec // The kernel's own sizes are signed (loff_t).
	}}}, nil
}

// NodeExpandVolume reports the size that the device has by now, and has a
// read-only view follow it.
func (n *node) NodeExpandVolume(_ context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	device, err := n.openVolumePath(req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	defer device.Close()
	unlock, err := n.inflight.Lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := device.Resize(); err != nil {
		return nil, err
	}
	size := int64(device.Size()) //nolint:gosec // The kernel's own sizes are signed (loff_t).
	if required := req.GetCapacityRange().GetRequiredBytes(); required > size {
		return nil, fmt.Errorf("%w: capacity_range.required_bytes is %d, but %s has %d bytes; grow the disk itself first",
			volume.ErrOutOfRange, required, device, size)
	}
	if limit := req.GetCapacityRange().GetLimitBytes(); limit != 0 && limit < size {
		return nil, fmt.Errorf("%w: capacity_range.limit_bytes is %d, but %s has %d bytes; a device does not shrink",
			volume.ErrOutOfRange, limit, device, size)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

// openVolumePath opens the device of a volume by any path where it was published
// or staged. Kubelet sends its own bind mount of what was published.
func (n *node) openVolumePath(volumeID, path string) (*blockdev.Device, error) {
	if err := checkVolumeID(volumeID); err != nil {
		return nil, err
	}
	if path == "" {
		return nil, fmt.Errorf("%w: volume_path is missing", volume.ErrInvalid)
	}
	// To these two calls, a path where no volume can be is one where it is not.
	if err := n.paths.check("volume_path", path); err != nil {
		return nil, fmt.Errorf("%w: volume %s: %s", volume.ErrNotFound, volumeID, err.Error())
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return n.openStaged(volumeID, path)
	}
	device, err := blockdev.Open(path, n.sysfs)
	if errors.Is(err, volume.ErrInvalid) {
		err = fmt.Errorf("%w: volume %s: %s", volume.ErrNotFound, volumeID, err.Error())
	}
	return device, err
}

// openStaged opens the device of a volume that is staged at a folder.
func (n *node) openStaged(volumeID, path string) (*blockdev.Device, error) {
	number, found, err := n.publisher.StagedDevice(volumeID)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("%w: volume %s is not staged at %s", volume.ErrNotFound, volumeID, path)
	}
	return blockdev.OpenNumber(number, n.sysfs)
}

// NodeGetInfo tells the cluster who this node is.
func (n *node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             n.id,
		MaxVolumesPerNode:  n.maxVolumes,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{TopologyKey: n.id}},
	}, nil
}

// NodeGetCapabilities tells which optional calls the Node service answers.
func (n *node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	response := &csi.NodeGetCapabilitiesResponse{}
	for _, capability := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: capability}},
		})
	}
	return response, nil
}
