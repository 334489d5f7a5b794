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
}

// GetPluginInfo tells the name and version of the plugin.
func (i *identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Name, VendorVersion: i.version}, nil
}

// GetPluginCapabilities says that volumes belong to nodes.
func (i *identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{
		Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{
			Type: csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
		}},
	}}}, nil
}

// Probe looks whether the plugin can do its work on this node. A node that lacks
// something is FAILED_PRECONDITION, as the CSI specification prescribes.
func (i *identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	if err := i.probe(); err != nil {
		return nil, fmt.Errorf("%w: %w", volume.ErrPrecondition, err)
	}
	return &csi.ProbeResponse{}, nil
}
