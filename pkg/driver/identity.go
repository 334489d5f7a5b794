package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Name is the name of the driver in Kubernetes: that of the CSIDriver object and
// of spec.csi.driver in a PersistentVolume.
const Name = "csi.rawblock.dev"

// identity is the CSI Identity service.
type identity struct {
	csi.UnimplementedIdentityServer
	version string
	probe   func() error
	// provisions says that there is a Controller service, snapshots that it makes
	// snapshots.
	provisions, snapshots bool
}

// GetPluginInfo tells the name and version of the plugin.
func (i *identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Name, VendorVersion: i.version}, nil
}

// GetPluginCapabilities says that volumes and snapshots belong to nodes, and that
// volumes grow while they are in use.
func (i *identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	services := []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS}
	if i.provisions {
		services = append(services, csi.PluginCapability_Service_CONTROLLER_SERVICE)
	}
	if i.snapshots {
		services = append(services, csi.PluginCapability_Service_SNAPSHOT_ACCESSIBILITY_CONSTRAINTS)
	}
	response := &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{
		Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: &csi.PluginCapability_VolumeExpansion{
			Type: csi.PluginCapability_VolumeExpansion_ONLINE,
		}},
	}}}
	for _, service := range services {
		response.Capabilities = append(response.Capabilities, &csi.PluginCapability{
			Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: service}},
		})
	}
	return response, nil
}

// Probe looks whether the plugin can do its work on this node. A node that lacks
// something is FAILED_PRECONDITION, as the CSI specification prescribes.
func (i *identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	if err := i.probe(); err != nil {
		return nil, fmt.Errorf("%w: %w", volume.ErrPrecondition, err)
	}
	return &csi.ProbeResponse{}, nil
}
