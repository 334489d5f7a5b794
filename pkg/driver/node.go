package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// TopologyKey is the topology segment, and so the label, that holds the name of
// the node a volume is on.
const TopologyKey = "topology.rawblock.dev/node"

// devices opens the device of a volume that an administrator made.
type devices interface {
	// Open returns the device that the attributes of the volume describe, open
	// and verified; the caller closes it. It may be called concurrently.
	//
	// Errors: volume.ErrInvalid, volume.ErrNotFound, volume.ErrMismatch.
	Open(ctx context.Context, attributes map[string]string) (*blockdev.Device, error)
}

// attachments are the devices that were given to running containers.
type attachments interface {
	// Withdraw takes away what a running container was given of the volume for
	// the pod that has the target path; nothing is no error. Errors:
	// volume.ErrInUse while processes have the device open.
	Withdraw(ctx context.Context, volumeID, target string) error
	// CheckReleased returns an error while a running container has the volume.
	// Errors: volume.ErrInUse.
	CheckReleased(ctx context.Context, volumeID string) error
	// Conditions returns what is wrong with what running containers were given of
	// the volume.
	Conditions(ctx context.Context, volumeID string) ([]volume.Condition, error)
}

// noAttachments is a node where nothing is given to running containers.
type noAttachments struct{}

func (noAttachments) Withdraw(context.Context, string, string) error { return nil }
func (noAttachments) CheckReleased(context.Context, string) error    { return nil }
func (noAttachments) Conditions(context.Context, string) ([]volume.Condition, error) {
	return nil, nil
}

// node is the CSI Node service.
type node struct {
	csi.UnimplementedNodeServer
	volumes
	attachments
	maxVolumes int64
	paths      kubeletDir
	publisher  *publish.Publisher
	sysfs      blockdev.Sysfs
	reports    *reports
	// looks are those at the devices of volumes.
	looks *linux.Limit
	// inflight is shared with the Controller service.
	inflight *inflight.Names
}

// NodePublishVolume verifies the device, decides whether it may be published
// here, and mounts its node on the target.
func (n *node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	wanted, err := n.parsePublish(req)
	if err != nil {
		return nil, err
	}
	volumeID := n.identity(req.GetVolumeId())
	unlock, err := n.inflight.Lock(volumeID, wanted.Target)
	if err != nil {
		return nil, err
	}
	defer unlock()
	device, err := n.open(ctx, volumeID, req.GetVolumeContext(), n.opened)
	n.reports.monitor.NoteOpening(volumeID, err)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	if err := n.checkNamed(ctx, volumeID, device); err != nil {
		return nil, err
	}
	if err := n.publisher.Admit(ctx, volumeID, device, wanted); err != nil {
		return nil, err
	}
	target := publish.Target{VolumeID: volumeID, Path: wanted.Target}
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

// NodeUnpublishVolume takes the volume away from the target, and before that from
// the running container that it was attached to for the pod of the target. It
// needs neither the device nor the staging directory.
func (n *node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := cmp.Or(checkVolumeID(req.GetVolumeId()), n.paths.check("target_path", req.GetTargetPath())); err != nil {
		return nil, err
	}
	volumeID := n.identity(req.GetVolumeId())
	unlock, err := n.inflight.Lock(volumeID, req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.Withdraw(ctx, volumeID, req.GetTargetPath()); err != nil {
		return nil, err
	}
	target := publish.Target{VolumeID: volumeID, Path: req.GetTargetPath()}
	return &csi.NodeUnpublishVolumeResponse{}, n.publisher.Unpublish(ctx, target)
}

// NodeGetVolumeStats reports the size of the device. What is used of a raw
// device only its user knows, so it is left out.
func (n *node) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	size, err := n.lookAt(n.identity(req.GetVolumeId()), req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{
		Unit:  csi.VolumeUsage_BYTES,
		Total: int64(size), //nolint:gosec // The kernel's own sizes are signed (loff_t).
	}}}, nil
}

// lookAt returns the size of the device of a volume. Kubelet asks again and again, also where
// the pod keeps its device from answering: of each path one question waits for its answer.
// Errors: volume.ErrAborted then.
func (n *node) lookAt(volumeID, path string) (size uint64, err error) {
	size, err = linux.Ask(n.looks, path, func() (uint64, error) {
		device, err := n.openVolumePath(volumeID, path)
		if err != nil {
			return 0, err
		}
		defer device.Close()
		return device.Size(), nil
	})
	if errors.Is(err, linux.ErrStuck) {
		err = fmt.Errorf("%w: look at the device of volume %s: %w", volume.ErrAborted, volumeID, err)
	}
	return size, err
}

// lookWait is how long a device may take to be opened: longer than a disk takes to spin up.
const lookWait = 15 * time.Second

// NodeExpandVolume grows a volume, if its pool can, and has a read-only view
// follow it. It does all there is to do: where every node has its own pools, no
// ControllerExpandVolume reaches the right one. Of a device that an administrator
// named, it reports the size that the device has by now.
func (n *node) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	wanted, err := parseRange(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	volumeID := n.identity(req.GetVolumeId())
	// Before it is locked, and others wait for it.
	if _, err := n.lookAt(volumeID, req.GetVolumePath()); err != nil {
		return nil, err
	}
	unlock, err := n.inflight.Lock(volumeID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	device, err := n.openVolumePath(volumeID, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	defer device.Close()
	if _, ok, err := n.expand(ctx, volumeID, wanted); err != nil {
		return nil, err
	} else if ok {
		if err := n.resizeMapping(ctx, volumeID); err != nil {
			return nil, err
		}
	}
	if err := device.Resize(); err != nil {
		return nil, err
	}
	if device.Size() < wanted.Required {
		return nil, fmt.Errorf("%w: capacity_range.required_bytes is %d, but %s has %d bytes; grow the disk itself first",
			volume.ErrOutOfRange, wanted.Required, device, device.Size())
	}
	if !wanted.Contains(device.Size()) {
		return nil, fmt.Errorf("%w: capacity_range.limit_bytes is %d, but %s has %d bytes; a device does not shrink",
			volume.ErrOutOfRange, wanted.Limit, device, device.Size())
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: int64(device.Size())}, nil //nolint:gosec // The kernel's own sizes are signed (loff_t).
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
		device, _, err := n.publisher.OpenStaged(volumeID)
		return device, err
	}
	device, err := blockdev.Open(path, n.sysfs)
	if errors.Is(err, volume.ErrInvalid) {
		err = fmt.Errorf("%w: volume %s: %s", volume.ErrNotFound, volumeID, err.Error())
	}
	if err != nil {
		return nil, err
	}
	if err := n.publisher.CheckStaged(volumeID, device); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// NodeGetInfo tells the cluster who this node is.
func (n *node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             n.node,
		MaxVolumesPerNode:  n.maxVolumes,
		AccessibleTopology: n.topology(),
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
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: capability}},
		})
	}
	return response, nil
}
