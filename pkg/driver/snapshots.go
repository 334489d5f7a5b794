package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// snapshotters returns the pools that make snapshots, by their names.
func (v volumes) snapshotters() map[string]snapshotter {
	found := map[string]snapshotter{}
	for name, pool := range v.pools {
		if pool, can := pool.(snapshotter); can {
			found[name] = pool
		}
	}
	return found
}

// CreateSnapshot makes a snapshot in the pool of its volume.
func (c *controller) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if req.GetName() == "" {
		return nil, fmt.Errorf("%w: name is missing", volume.ErrInvalid)
	}
	if req.GetSourceVolumeId() == "" {
		return nil, fmt.Errorf("%w: source_volume_id is missing", volume.ErrInvalid)
	}
	if hasOwnKeys(req.GetParameters()) {
		return nil, fmt.Errorf("%w: parameters %v are unknown; a VolumeSnapshotClass of this driver has none", volume.ErrInvalid, req.GetParameters())
	}
	if err := c.reachable(req.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	id, ok := volume.ParseID(req.GetSourceVolumeId())
	if !ok {
		return nil, fmt.Errorf("%w: no pool has a volume %q", volume.ErrNotFound, req.GetSourceVolumeId())
	}
	pool, can := c.snapshotters()[id.Pool]
	if !can {
		return nil, fmt.Errorf("%w: %s: node %s has no pool %s that makes snapshots", volume.ErrNotFound, id, c.node, id.Pool)
	}
	if err := c.flushMapping(ctx, c.pools[id.Pool], id); err != nil {
		return nil, err
	}
	snapshot, err := pool.CreateSnapshot(ctx, volume.SnapshotNameOf(req.GetName()), id.Name)
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: c.describeSnapshot(id.Pool, snapshot)}, nil
}

func (c *controller) describeSnapshot(pool string, snapshot volume.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId:         c.id(pool, snapshot.Name),
		SourceVolumeId:     c.id(pool, snapshot.Volume),
		SizeBytes:          int64(plainSize(snapshot.Size, snapshot.Encryption)), //nolint:gosec // The kernel's own sizes are signed (loff_t).
		CreationTime:       timestamppb.New(snapshot.Created),
		ReadyToUse:         true,
		AccessibleTopology: []*csi.Topology{c.topology()},
	}
}

// DeleteSnapshot removes a snapshot. One that never existed is no error; one of
// another node is, since it would stay there.
func (c *controller) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, fmt.Errorf("%w: snapshot_id is missing", volume.ErrInvalid)
	}
	id, ok := volume.ParseID(req.GetSnapshotId())
	if !ok {
		return &csi.DeleteSnapshotResponse{}, nil // No ID that any node has given out.
	}
	if _, err := c.poolToDeleteFrom(id); err != nil {
		return nil, err
	}
	pool, can := c.snapshotters()[id.Pool]
	if !can {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	if _, err := pool.GetSnapshot(ctx, id.Name); errors.Is(err, volume.ErrNotFound) && id.Node != c.node {
		return nil, elsewhere(id, c.node)
	}
	return &csi.DeleteSnapshotResponse{}, pool.DeleteSnapshot(ctx, id.Name)
}

// GetSnapshot returns a snapshot.
func (c *controller) GetSnapshot(ctx context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, fmt.Errorf("%w: snapshot_id is missing", volume.ErrInvalid)
	}
	id, _ := volume.ParseID(req.GetSnapshotId())
	pool, can := c.snapshotters()[id.Pool]
	if !can {
		return nil, fmt.Errorf("%w: no pool of node %s has a snapshot %q", volume.ErrNotFound, c.node, req.GetSnapshotId())
	}
	snapshot, err := pool.GetSnapshot(ctx, id.Name)
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: c.describeSnapshot(id.Pool, snapshot)}, nil
}

// ListSnapshots returns the snapshots of this node, by their IDs: all, that of an
// ID, or those of a volume.
func (c *controller) ListSnapshots(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	found := map[string]*csi.ListSnapshotsResponse_Entry{}
	for name, pool := range c.snapshotters() {
		snapshots, err := pool.ListSnapshots(ctx)
		if err != nil {
			return nil, err
		}
		for _, snapshot := range snapshots {
			described := c.describeSnapshot(name, snapshot)
			if c.matches(req.GetSnapshotId(), described.GetSnapshotId()) && c.matches(req.GetSourceVolumeId(), described.GetSourceVolumeId()) {
				found[described.GetSnapshotId()] = &csi.ListSnapshotsResponse_Entry{Snapshot: described}
			}
		}
	}
	entries, next, err := page(found, req.GetStartingToken(), req.GetMaxEntries())
	return &csi.ListSnapshotsResponse{Entries: entries, NextToken: next}, err
}

// matches reports whether an ID is the one that is asked for, if one is.
func (v volumes) matches(asked, id string) bool { return asked == "" || v.identity(asked) == id }
