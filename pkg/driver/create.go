package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// PoolParameter is the parameter of a StorageClass that names the pool. It may be
// left out where a node has one pool.
const PoolParameter = "pool"

// creation is what a CreateVolume request asks for.
type creation struct {
	pool string
	spec volume.Spec
	wish wish
	// from is the ID of what the volume is to be a copy of, if anything; fromVolume
	// says that it is a volume and not a snapshot.
	from       volume.ID
	fromVolume bool
	isCopy     bool
}

func (c *controller) parseCreate(req *csi.CreateVolumeRequest) (creation, error) {
	if req.GetName() == "" {
		return creation{}, fmt.Errorf("%w: name is missing", volume.ErrInvalid)
	}
	if len(req.GetMutableParameters()) > 0 {
		return creation{}, fmt.Errorf("%w: mutable_parameters (a VolumeAttributesClass) are not supported", volume.ErrInvalid)
	}
	if err := checkCapabilities(req.GetVolumeCapabilities()); err != nil {
		return creation{}, err
	}
	size, err := parseRange(req.GetCapacityRange())
	if err != nil {
		return creation{}, err
	}
	pool, asked, parameters, err := splitParameters(req.GetParameters())
	if err != nil {
		return creation{}, err
	}
	wanted := creation{pool: pool, wish: asked, spec: volume.Spec{
		Name: volume.NameOf(req.GetName()), Parameters: parameters, Encryption: asked.encryption,
	}}
	if err := wanted.parseSource(req.GetVolumeContentSource()); err != nil {
		return creation{}, err
	}
	wanted.spec.Size = newRange(size, asked.encryption, wanted.isCopy)
	if wanted.pool == "" && wanted.isCopy {
		wanted.pool = wanted.from.Pool
	}
	wanted.pool, err = c.poolName(wanted.pool)
	return wanted, err
}

func (w *creation) parseSource(source *csi.VolumeContentSource) error {
	if source == nil {
		return nil
	}
	text := source.GetSnapshot().GetSnapshotId()
	if source.GetVolume() != nil {
		text, w.fromVolume = source.GetVolume().GetVolumeId(), true
	}
	if text == "" {
		return fmt.Errorf("%w: volume_content_source names neither a snapshot nor a volume", volume.ErrInvalid)
	}
	w.from, w.isCopy = volume.ParseID(text)
	if !w.isCopy {
		return fmt.Errorf("%w: volume_content_source %q is not known to this driver", volume.ErrNotFound, text)
	}
	return nil
}

// findSource returns what a volume is to be a copy of, in the pool.
func (c *controller) findSource(ctx context.Context, pool Pool, wanted creation) (volume.Source, error) {
	if !wanted.isCopy {
		return volume.Source{}, nil
	}
	if wanted.from.Pool != wanted.pool {
		return volume.Source{}, fmt.Errorf("%w: volume_content_source %s is in another pool than the volume, %s; use a StorageClass of the same pool",
			volume.ErrInvalid, wanted.from, wanted.pool)
	}
	copies, can := pool.(snapshotter)
	if !can {
		return volume.Source{}, fmt.Errorf("%w: pool %s makes neither snapshots nor clones", volume.ErrInvalid, wanted.pool)
	}
	source, err := volume.Source{Volume: wanted.from.Name}, error(nil)
	if wanted.fromVolume {
		if _, err = pool.Get(ctx, wanted.from.Name); err == nil {
			err = c.flushMapping(ctx, pool, wanted.from)
		}
	} else {
		source = volume.Source{Snapshot: wanted.from.Name}
		_, err = copies.GetSnapshot(ctx, wanted.from.Name)
	}
	if errors.Is(err, volume.ErrNotFound) && wanted.from.Node != c.node {
		// The scheduler is to try another node.
		return volume.Source{}, fmt.Errorf("%w: %s is on node %s, and a copy can only be made there; this is node %s",
			volume.ErrExhausted, wanted.from, wanted.from.Node, c.node)
	}
	return source, err
}

// poolName returns the name of the pool that is meant by a parameter.
func (c *controller) poolName(parameter string) (string, error) {
	if parameter != "" {
		return parameter, nil
	}
	if len(c.pools) == 1 {
		return c.poolNames(), nil
	}
	return "", fmt.Errorf("%w: parameter %s is missing, and node %s has several pools; set it to one of: %s",
		volume.ErrInvalid, PoolParameter, c.node, c.poolNames())
}

// choosePool returns a pool of this node. Where it has none of that name, another
// node may. Errors: volume.ErrExhausted.
func (c *controller) choosePool(name string) (Pool, error) {
	pool, found := c.pools[name]
	if !found {
		return nil, fmt.Errorf("%w: node %s has no pool %q (parameter %s of the StorageClass); it has: %s",
			volume.ErrExhausted, c.node, name, PoolParameter, c.poolNames())
	}
	return pool, nil
}

// splitParameters takes the pool, what is about encryption, and the keys of
// Kubernetes, out of the parameters of a StorageClass.
func splitParameters(all map[string]string) (pool string, wanted wish, parameters map[string]string, err error) {
	wanted, rest, err := splitEncryption(all)
	parameters = map[string]string{}
	for key, value := range rest {
		switch {
		case key == PoolParameter:
			pool = value
		case !strings.Contains(key, "/"):
			parameters[key] = value
		}
	}
	return pool, wanted, parameters, err
}

// reachable returns an error unless a volume of this node is where it must be.
// Errors: volume.ErrExhausted, by which the caller tries another node.
func (c *controller) reachable(requirement *csi.TopologyRequirement) error {
	requisite := requirement.GetRequisite()
	for _, topology := range requisite {
		if c.isHere(topology) {
			return nil
		}
	}
	if len(requisite) == 0 {
		return nil
	}
	return fmt.Errorf("%w: accessibility_requirements do not allow node %s, and its volumes are nowhere else", volume.ErrExhausted, c.node)
}

// isHere reports whether this node is in a topology.
func (c *controller) isHere(topology *csi.Topology) bool {
	for key, value := range topology.GetSegments() {
		if key != TopologyKey || value != c.node {
			return false
		}
	}
	return true
}

func (v volumes) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey: v.node}}
}

// checkCapabilities returns an error unless a provisioned volume can be used as
// asked: as a raw block device, on the node that it is on.
func checkCapabilities(capabilities []*csi.VolumeCapability) error {
	if len(capabilities) == 0 {
		return fmt.Errorf("%w: volume_capabilities is missing", volume.ErrInvalid)
	}
	for _, capability := range capabilities {
		mode, err := parseCapability(capability)
		if errors.Is(err, volume.ErrPrecondition) {
			return fmt.Errorf("%w: %s", volume.ErrInvalid, err.Error()) // To a volume that is yet to be made, it is a wrong argument.
		}
		if err != nil {
			return err
		}
		if mode.MultiNode() {
			return fmt.Errorf("%w: access mode %s needs a device that several nodes reach, and this one is on one node; use ReadWriteOnce or ReadWriteOncePod (and readOnly: true in the pod to read only)",
				volume.ErrInvalid, mode)
		}
	}
	return nil
}

// parseRange reads a capacity range, which may be nil.
func parseRange(asked *csi.CapacityRange) (volume.Range, error) {
	required, limit := asked.GetRequiredBytes(), asked.GetLimitBytes()
	switch {
	case required < 0 || limit < 0:
		return volume.Range{}, fmt.Errorf("%w: capacity_range has a negative size (required_bytes %d, limit_bytes %d)", volume.ErrInvalid, required, limit)
	case limit != 0 && limit < required:
		return volume.Range{}, fmt.Errorf("%w: capacity_range.limit_bytes is %d, less than required_bytes, %d", volume.ErrInvalid, limit, required)
	}
	return volume.Range{Required: uint64(required), Limit: uint64(limit)}, nil
}
