package bench

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

// floorSocket names the socket on which this binary serves as the floor.
const floorSocket = "RAWBLOCK_BENCH_FLOOR"

// floor answers the calls and does nothing.
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

func serveFloor(socket string) {
	listener, err := net.Listen("unix", socket) //nolint:noctx // For the life of the process.
	if err == nil {
		server := grpc.NewServer()
		csi.RegisterNodeServer(server, floor{})
		err = server.Serve(listener)
	}
	fmt.Fprintln(os.Stderr, "floor:", err)
	os.Exit(1)
}
