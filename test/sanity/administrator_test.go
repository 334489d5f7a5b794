package sanity

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const diskSize = 8 * rig.MiB

// administrator stands for the person who makes a PersistentVolume for a disk:
// csi-sanity asks a controller for its volumes, and this plugin has none yet.
// The disks are real, and what is tested is the plugin's own Node service.
type administrator struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedIdentityServer
	t testing.TB
	// identity is the plugin's: csi-sanity asks it at both sockets.
	identity csi.IdentityClient
	mu       sync.Mutex
	disks    map[string]*rig.Disk
}

func serveAdministrator(t testing.TB, identity csi.IdentityClient) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "controller.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	rig.Must(t, err)
	server := grpc.NewServer()
	admin := &administrator{t: t, identity: identity, disks: map[string]*rig.Disk{}}
	csi.RegisterIdentityServer(server, admin)
	csi.RegisterControllerServer(server, admin)
	go server.Serve(listener) //nolint:errcheck // It ends with the test.
	t.Cleanup(server.Stop)
	return socket
}

func (a *administrator) GetPluginInfo(ctx context.Context, req *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return a.identity.GetPluginInfo(ctx, req)
}

func (a *administrator) GetPluginCapabilities(ctx context.Context, req *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return a.identity.GetPluginCapabilities(ctx, req)
}

func (a *administrator) Probe(ctx context.Context, req *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return a.identity.Probe(ctx, req)
}

func (a *administrator) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{{
		Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{
			Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		}},
	}}}, nil
}

func (a *administrator) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	disk, found := a.disks[req.GetName()]
	if !found {
		disk = rig.NewDisk(a.t, diskSize)
		a.disks[req.GetName()] = disk
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: req.GetName(), CapacityBytes: diskSize, VolumeContext: map[string]string{"device": disk.Path},
	}}, nil
}

func (a *administrator) DeleteVolume(_ context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if disk, found := a.disks[req.GetVolumeId()]; found {
		disk.Pull(a.t)
		delete(a.disks, req.GetVolumeId())
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (a *administrator) ValidateVolumeCapabilities(_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, found := a.disks[req.GetVolumeId()]; !found {
		return nil, status.Error(codes.NotFound, "no such disk")
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeCapabilities: req.GetVolumeCapabilities(),
	}}, nil
}
