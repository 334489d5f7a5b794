// Package cri asks the container runtime below kubelet what runs on this node, by
// the Container Runtime Interface (k8s.io/cri-api, runtime.v1). It only reads.
//
// Names of pods and containers are used again; what tells them apart is the UID of
// a pod and the ID of a container. The runtime may be restarted at any time, so
// each call stands for itself and has a deadline.
//
// Errors: volume.ErrPrecondition where the runtime does not answer;
// volume.ErrNotFound for what it does not have.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// callTimeout is how long the runtime may take to answer. Kubelet waits for two
// minutes, but here others wait for the answer, and it is asked again.
const callTimeout = 10 * time.Second

// What kubelet has for its own connection to the runtime (remote_runtime.go and
// utils.go in k8s.io/cri-client/pkg): answers may be long, since the annotations of
// all pods are in one, and a runtime that was away is found again soon, where gRPC
// would wait for up to two minutes.
const (
	maxMessage        = 16 << 20
	minBackoff        = 100 * time.Millisecond
	maxBackoff        = 3 * time.Second
	connectionTimeout = 5 * time.Second
)

// ErrUnsupported says that a runtime does not know a call: one of before
// Kubernetes 1.26, such as containerd 1.6, has no events.
var ErrUnsupported = errors.New("the container runtime does not support this")

// The labels by which kubelet says whose a container is
// (pkg/kubelet/types/labels.go in Kubernetes).
const (
	labelNamespace = "io.kubernetes.pod.namespace"
	labelPod       = "io.kubernetes.pod.name"
	labelUID       = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
)

// Pod is a pod that the runtime knows: a sandbox.
type Pod struct {
	Namespace, Name, UID string
	// Ready says that its sandbox runs.
	Ready bool
	// Annotations are those that the pod had when the sandbox was made.
	Annotations map[string]string
}

// Container is a running container of a pod.
type Container struct {
	// ID is the ID that the runtime gave it. One that is restarted gets another.
	ID string
	// Name is its name in the pod.
	Name string
	// PodNamespace, PodName and PodUID name the pod.
	PodNamespace, PodName, PodUID string
}

// Client speaks to a container runtime. Its methods may be called concurrently.
type Client struct {
	socket string
	conn   *grpc.ClientConn
	calls  runtime.RuntimeServiceClient
}

// knownSockets are where runtimes serve CRI unless they are told otherwise.
var knownSockets = []string{
	"run/containerd/containerd.sock",
	"run/crio/crio.sock",
	"run/k3s/containerd/containerd.sock",
	"run/k0s/containerd.sock",
	"var/snap/microk8s/common/run/containerd.sock",
	"run/cri-dockerd.sock",
}

// FindSocket returns the path of the first known socket that is there, below the
// root of the host. Errors: volume.ErrNotFound.
func FindSocket(root string) (string, error) {
	for _, socket := range knownSockets {
		path := filepath.Join(root, socket)
		if info, err := os.Stat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: no container runtime has a socket in %s (looked for %s)", volume.ErrNotFound, root, strings.Join(knownSockets, ", "))
}

// Dial returns a client of the runtime that serves, or will serve, on the socket.
func Dial(socket string) (*Client, error) {
	reconnect := backoff.DefaultConfig
	reconnect.BaseDelay, reconnect.MaxDelay = minBackoff, maxBackoff
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: connectionTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("reach the container runtime at %s: %w", socket, err)
	}
	return &Client{socket, conn, runtime.NewRuntimeServiceClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Pods returns the pods that the runtime knows, also those that have ended.
func (c *Client) Pods(ctx context.Context) ([]Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := c.calls.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return nil, c.wrap("list pods", err)
	}
	var pods []Pod
	for _, sandbox := range response.GetItems() {
		pods = append(pods, Pod{
			Namespace:   sandbox.GetMetadata().GetNamespace(),
			Name:        sandbox.GetMetadata().GetName(),
			UID:         sandbox.GetMetadata().GetUid(),
			Ready:       sandbox.GetState() == runtime.PodSandboxState_SANDBOX_READY,
			Annotations: sandbox.GetAnnotations(),
		})
	}
	return pods, nil
}

// Containers returns the running containers of pods.
func (c *Client) Containers(ctx context.Context) ([]Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := c.calls.ListContainers(ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{
		State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return nil, c.wrap("list containers", err)
	}
	var containers []Container
	for _, container := range response.GetContainers() {
		labels := container.GetLabels()
		containers = append(containers, Container{
			ID:           container.GetId(),
			Name:         labels[labelContainer],
			PodNamespace: labels[labelNamespace],
			PodName:      labels[labelPod],
			PodUID:       labels[labelUID],
		})
	}
	return containers, nil
}

// PID returns the number of the first process of a running container, as the host
// counts. The caller checks that it is that container's, since the container may
// end meanwhile. Errors: volume.ErrNotFound.
func (c *Client) PID(ctx context.Context, containerID string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := c.calls.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: containerID, Verbose: true})
	if err != nil {
		return 0, c.wrap("look at container "+containerID, err)
	}
	if response.GetStatus().GetState() != runtime.ContainerState_CONTAINER_RUNNING {
		return 0, fmt.Errorf("%w: container %s does not run", volume.ErrNotFound, containerID)
	}
	// What is verbose is each runtime's own; containerd, CRI-O and cri-dockerd all
	// have it so.
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(response.GetInfo()["info"]), &info); err != nil || info.PID <= 0 {
		return 0, fmt.Errorf("%w: the container runtime at %s does not tell the process of container %s", volume.ErrPrecondition, c.socket, containerID)
	}
	return info.PID, nil
}

// Watch calls changed whenever something happens to a container, until ctx ends or
// the runtime does. Errors: ErrUnsupported.
func (c *Client) Watch(ctx context.Context, changed func()) error {
	events, err := c.calls.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		return c.wrap("watch containers", err)
	}
	for {
		_, err := events.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.wrap("watch containers", err)
		}
		changed()
	}
}

// wrap turns an error of the runtime into one of the project's.
func (c *Client) wrap(doing string, err error) error {
	switch status.Code(err) {
	case codes.NotFound:
		return fmt.Errorf("%s: %w: %s", doing, volume.ErrNotFound, status.Convert(err).Message())
	case codes.Unimplemented:
		return fmt.Errorf("%s: %w", doing, ErrUnsupported)
	case codes.Canceled:
		return fmt.Errorf("%s: %w", doing, context.Canceled)
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("%s: %w: the container runtime at %s does not answer: %s", doing, volume.ErrPrecondition, c.socket, status.Convert(err).Message())
	default:
		return fmt.Errorf("%s by the container runtime at %s: %w", doing, c.socket, err)
	}
}
