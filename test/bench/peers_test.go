package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Environment variables that have this binary serve as a peer: on which socket,
// and which one.
const (
	peerSocket = "RAWBLOCK_BENCH_SOCKET"
	peerKind   = "RAWBLOCK_BENCH_PEER"
)

// floor answers the calls and does nothing: what gRPC over a unix socket takes.
type floor struct{ csi.UnimplementedNodeServer }

func (floor) NodePublishVolume(context.Context, *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	return &csi.NodePublishVolumeResponse{}, nil
}

func (floor) NodeUnpublishVolume(context.Context, *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (floor) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

// bare makes the mount and takes it away, and looks at nothing: what the kernel
// takes for what the specification asks for.
type bare struct{ floor }

func (bare) NodePublishVolume(_ context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	device, err := linux.OpenPath(req.GetVolumeContext()["device"])
	if err != nil {
		return nil, err
	}
	defer device.Close()
	dir, err := linux.OpenDir(filepath.Dir(req.GetTargetPath()))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := filepath.Base(req.GetTargetPath())
	if err := linux.CreateFile(dir, name); err != nil {
		return nil, err
	}
	file, err := linux.OpenPathAt(dir, name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return &csi.NodePublishVolumeResponse{}, linux.BindFile(device, file)
}

func (bare) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	dir, err := linux.OpenDir(filepath.Dir(req.GetTargetPath()))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := filepath.Base(req.GetTargetPath())
	return &csi.NodeUnpublishVolumeResponse{}, errors.Join(linux.Unmount(dir, name, false), linux.RemoveFile(dir, name))
}

func servePeer(socket, kind string) {
	peers := map[string]csi.NodeServer{"floor": floor{}, "bare": bare{}}
	listener, err := net.Listen("unix", socket)
	if err == nil {
		server := grpc.NewServer()
		csi.RegisterNodeServer(server, peers[kind])
		err = server.Serve(listener)
	}
	fmt.Fprintln(os.Stderr, kind+":", err)
	os.Exit(1)
}
