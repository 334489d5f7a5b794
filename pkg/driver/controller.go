package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// controller is the CSI Controller service for the volumes of one node: it runs
// on every node beside its own external-provisioner (--node-deployment).
type controller struct {
	csi.UnimplementedControllerServer
	volumes
	// expansion says that ControllerExpandVolume is offered.
	expansion bool
	publisher *publish.Publisher
	attachments
	reports *reports
	// inflight is shared with the Node service.
	inflight *inflight.Names
}

// CreateVolume makes a volume in the pool that the StorageClass names, if this
// node is one where it may be.
func (c *controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	wanted, err := c.parseCreate(req)
	if err != nil {
		return nil, err
	}
	if err := c.reachable(req.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	pool, err := c.choosePool(wanted.pool)
	if err != nil {
		return nil, err
	}
	if err := c.checkPossible(ctx, wanted.wish); err != nil {
		return nil, err
	}
	spec := wanted.spec
	if spec.Source, err = c.findSource(ctx, pool, wanted); err != nil {
		return nil, err
	}
	info, err := pool.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	made := c.describe(wanted.pool, info)
	made.VolumeContext = wanted.wish.attributes()
	made.ContentSource = req.GetVolumeContentSource()
	return &csi.CreateVolumeResponse{Volume: made}, nil
}

// describe returns a volume of a pool in CSI's words.
func (c *controller) describe(pool string, info volume.Info) *csi.Volume {
	described := &csi.Volume{
		VolumeId:           c.id(pool, info.Name),
		CapacityBytes:      int64(plainSize(info.Size, info.Encryption)), //nolint:gosec // The kernel's own sizes are signed (loff_t).
		VolumeContext:      wish{encryption: info.Encryption}.attributes(),
		AccessibleTopology: []*csi.Topology{c.topology()},
	}
	switch {
	case info.Source.Snapshot != "":
		described.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: c.id(pool, info.Source.Snapshot)},
		}}
	case info.Source.Volume != "":
		described.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: c.id(pool, info.Source.Volume)},
		}}
	}
	return described
}

// DeleteVolume removes a volume and what was written to it. A volume that never
// existed is no error; one of another node is, since it would stay there.
func (c *controller) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	id, ok := volume.ParseID(req.GetVolumeId())
	if !ok {
		return &csi.DeleteVolumeResponse{}, nil // No ID that any node has given out.
	}
	volumeID := c.identity(req.GetVolumeId())
	unlock, err := c.inflight.Lock(volumeID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	pool, err := c.poolToDeleteFrom(id)
	if err != nil {
		return nil, err
	}
	if _, err := pool.Get(ctx, id.Name); errors.Is(err, volume.ErrNotFound) && id.Node != c.node {
		return nil, elsewhere(id, c.node)
	}
	if err := c.CheckReleased(ctx, volumeID); err != nil {
		return nil, err
	}
	// What is staged and nowhere published has no user.
	if err := c.publisher.Unstage(volumeID); err != nil {
		return nil, err
	}
	if err := c.encryption.Close(ctx, id); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, pool.Delete(ctx, id.Name)
}

// poolToDeleteFrom returns the pool of an ID. Where it is not configured, nobody
// can say that what was in it is gone.
func (c *controller) poolToDeleteFrom(id volume.ID) (Pool, error) {
	pool, found := c.pools[id.Pool]
	switch {
	case found:
		return pool, nil
	case id.Node != c.node:
		return nil, elsewhere(id, c.node)
	}
	return nil, fmt.Errorf("%w: node %s has no pool %s (it has: %s); configure it again to have %s deleted",
		volume.ErrPrecondition, c.node, id.Pool, c.poolNames(), id)
}

func elsewhere(id volume.ID, node string) error {
	return fmt.Errorf("%w: %s is on node %s, and this is node %s; send the call there", volume.ErrPrecondition, id, id.Node, node)
}

// ValidateVolumeCapabilities tells whether a volume can be used as asked.
func (c *controller) ValidateVolumeCapabilities(ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, fmt.Errorf("%w: volume_capabilities is missing", volume.ErrInvalid)
	}
	if _, _, err := c.get(ctx, req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkCapabilities(req.GetVolumeCapabilities()); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
	}}, nil
}

// get returns a volume and its pool's name. Errors: volume.ErrNotFound, also for
// an ID that no node has given out.
func (c *controller) get(ctx context.Context, volumeID string) (volume.ID, volume.Info, error) {
	if err := checkVolumeID(volumeID); err != nil {
		return volume.ID{}, volume.Info{}, err
	}
	id, ok := volume.ParseID(volumeID)
	if !ok {
		return id, volume.Info{}, fmt.Errorf("%w: no pool has a volume %q", volume.ErrNotFound, volumeID)
	}
	pool, err := c.pool(id)
	if err != nil {
		return id, volume.Info{}, err
	}
	info, err := pool.Get(ctx, id.Name)
	return id, info, err
}

// ControllerGetVolume returns a volume.
func (c *controller) ControllerGetVolume(ctx context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	id, info, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: c.describe(id.Pool, info),
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{},
	}, nil
}

// ListVolumes returns the volumes of this node, by their IDs.
func (c *controller) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	found := map[string]*csi.ListVolumesResponse_Entry{}
	for name, pool := range c.pools {
		volumes, err := pool.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, info := range volumes {
			described := c.describe(name, info)
			found[described.GetVolumeId()] = &csi.ListVolumesResponse_Entry{Volume: described}
		}
	}
	entries, next, err := page(found, req.GetStartingToken(), req.GetMaxEntries())
	return &csi.ListVolumesResponse{Entries: entries, NextToken: next}, err
}

// GetCapacity returns what can be made on this node with the parameters of a
// StorageClass. A node without its pool has nothing to give, which is no error.
func (c *controller) GetCapacity(ctx context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	poolName, wanted, parameters, err := splitParameters(req.GetParameters())
	if err != nil {
		return nil, err
	}
	nothing := &csi.GetCapacityResponse{MaximumVolumeSize: wrapperspb.Int64(0)}
	if topology := req.GetAccessibleTopology(); topology != nil && !c.isHere(topology) {
		return nothing, nil
	}
	if capabilities := req.GetVolumeCapabilities(); len(capabilities) > 0 && checkCapabilities(capabilities) != nil {
		return nothing, nil
	}
	if poolName, err = c.poolName(poolName); err != nil {
		return nil, err
	}
	pool, err := c.choosePool(poolName)
	if errors.Is(err, volume.ErrExhausted) {
		return nothing, nil
	}
	if err != nil {
		return nil, err
	}
	if err := c.checkPossible(ctx, wanted); err != nil {
		klog.FromContext(ctx).Info("No encrypted volume can be made on this node", "reason", err.Error())
		return nothing, nil
	}
	capacity, err := pool.Capacity(ctx, parameters)
	if err != nil {
		return nil, err
	}
	capacity = plainCapacity(capacity, wanted.encryption)
	return &csi.GetCapacityResponse{
		AvailableCapacity: int64(capacity.Available),                   //nolint:gosec // The kernel's own sizes are signed (loff_t).
		MaximumVolumeSize: wrapperspb.Int64(int64(capacity.MaxVolume)), //nolint:gosec // The same.
		MinimumVolumeSize: wrapperspb.Int64(int64(capacity.MinVolume)), //nolint:gosec // The same.
	}, nil
}

// ControllerExpandVolume grows a volume of this node. It is only of use where
// every call reaches the node of its volume; elsewhere NodeExpandVolume does it all.
func (c *controller) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if !c.expansion {
		return c.UnimplementedControllerServer.ControllerExpandVolume(ctx, req)
	}
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if req.GetCapacityRange() == nil {
		return nil, fmt.Errorf("%w: capacity_range is missing", volume.ErrInvalid)
	}
	size, err := parseRange(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	volumeID := c.identity(req.GetVolumeId())
	unlock, err := c.inflight.Lock(volumeID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	grown, ok, err := c.expand(ctx, volumeID, size)
	if !ok {
		return nil, fmt.Errorf("%w: no pool of this node that can grow its volumes has a volume %s", volume.ErrNotFound, req.GetVolumeId())
	}
	if err != nil {
		return nil, err
	}
	// The node has a read-only view follow the size.
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: int64(grown), NodeExpansionRequired: true}, nil //nolint:gosec // The same.
}

// ControllerGetCapabilities tells which optional calls the Controller service answers.
func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	offered := []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
	}
	if c.expansion {
		offered = append(offered, csi.ControllerServiceCapability_RPC_EXPAND_VOLUME)
	}
	if len(c.snapshotters()) > 0 {
		offered = append(offered,
			csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
			csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
			csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
			csi.ControllerServiceCapability_RPC_CLONE_VOLUME)
	}
	response := &csi.ControllerGetCapabilitiesResponse{}
	for _, capability := range offered {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: capability}},
		})
	}
	return response, nil
}
