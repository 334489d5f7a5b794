package driver

import "google.golang.org/grpc"

// What callers may have at once. Requests are short, and whoever sends long ones, or very
// many, must not take the memory that the plugin has (the DaemonSet's limit is 128 MiB).
const (
	// maxRequest is the longest message in bytes. The CSI specification ("Size Limits") has
	// 4 KiB for a map and 128 bytes for most strings; the rest is for the topologies of a
	// CreateVolume request, which may have every node's.
	maxRequest = 128 << 10
	// maxHeaders is how many bytes the headers of a call may have; gRPC's own default is 16 MiB.
	maxHeaders = 16 << 10
	// maxStreams is how many calls a connection may have under way; who has more waits
	// (RFC 9113, 5.1.2). A sidecar has one connection for all volumes, of which some may
	// wait for a disk that hangs.
	maxStreams = 32
	// maxConnections is how many connections are served: kubelet makes one for each call,
	// and who comes then waits in the kernel's queue (listen(2)).
	maxConnections = 32
)

// bounds are the options of a gRPC server that keep it within its memory.
func bounds() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		// What may be on its way before anybody reads it, per call and connection.
		grpc.StaticStreamWindowSize(maxRequest),
		grpc.StaticConnWindowSize(maxRequest * 4),
	}
}
