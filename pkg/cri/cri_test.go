package cri_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// fake is a container runtime that answers what it is told to, and panics where it
// was told nothing. What a real one answers is tested with containerd, in
// test/hotplug; but that of Debian has no events, and none can be made to answer too
// late, too much or nonsense.
type fake struct {
	runtime.RuntimeServiceServer
	pods       func(context.Context) (*runtime.ListPodSandboxResponse, error)
	containers func(context.Context, *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error)
	status     func(context.Context, *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error)
	events     func(runtime.RuntimeService_GetContainerEventsServer) error
}

func (f *fake) ListPodSandbox(ctx context.Context, _ *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	return f.pods(ctx)
}

func (f *fake) ListContainers(ctx context.Context, request *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	return f.containers(ctx, request)
}

func (f *fake) ContainerStatus(ctx context.Context, request *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	return f.status(ctx, request)
}

func (f *fake) GetContainerEvents(_ *runtime.GetEventsRequest, stream runtime.RuntimeService_GetContainerEventsServer) error {
	return f.events(stream)
}

// serve serves the runtime on a socket until stop is called.
func (f *fake) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	rig.Must(t, err)
	server := grpc.NewServer(grpc.MaxSendMsgSize(1 << 30))
	runtime.RegisterRuntimeServiceServer(server, f)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			server.Stop()
			rig.Must(t, <-ended)
		}
	}
	t.Cleanup(stop)
	return stop
}

// dial returns a client of the runtime.
func (f *fake) dial(t *testing.T) *cri.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	f.serve(t, socket)
	return dial(t, socket)
}

func dial(t *testing.T, socket string) *cri.Client {
	t.Helper()
	client, err := cri.Dial(socket)
	rig.Must(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

func wantError(t *testing.T, err, want error, words string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v; want %v and the words %q", err, want, words)
	}
}

func TestContainers(t *testing.T) {
	var asked *runtime.ListContainersRequest
	client := (&fake{containers: func(_ context.Context, request *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
		asked = request
		return &runtime.ListContainersResponse{Containers: []*runtime.Container{
			{Id: "1", Labels: map[string]string{
				"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.name": "db-0", "io.kubernetes.pod.uid": "u", "io.kubernetes.container.name": "postgres",
			}},
			{Id: "2"}, // Of nobody's pod, as crictl can make one.
		}}, nil
	}}).dial(t)
	got, err := client.Containers(rig.Context(t))
	rig.Must(t, err)
	want := []cri.Container{{ID: "1", Name: "postgres", PodNamespace: "default", PodName: "db-0", PodUID: "u"}, {ID: "2"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if state := asked.GetFilter().GetState(); state == nil || state.GetState() != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("asked for %v", asked)
	}
}

func TestPID(t *testing.T) {
	running := &runtime.ContainerStatus{State: runtime.ContainerState_CONTAINER_RUNNING}
	info := func(text string) *runtime.ContainerStatusResponse {
		return &runtime.ContainerStatusResponse{Status: running, Info: map[string]string{"info": text}}
	}
	const untold = "does not tell the process of container c"
	for name, test := range map[string]struct {
		response *runtime.ContainerStatusResponse
		err      error
		pid      int
		want     error
		says     string
	}{
		"told":          {info(`{"sandboxID":"s","pid":42,"config":{}}`), nil, 42, nil, ""},
		"no info":       {&runtime.ContainerStatusResponse{Status: running}, nil, 0, volume.ErrPrecondition, untold},
		"no pid":        {info(`{}`), nil, 0, volume.ErrPrecondition, untold},
		"pid 0":         {info(`{"pid":0}`), nil, 0, volume.ErrPrecondition, untold},
		"negative pid":  {info(`{"pid":-1}`), nil, 0, volume.ErrPrecondition, untold},
		"a word":        {info(`{"pid":"42"}`), nil, 0, volume.ErrPrecondition, untold},
		"malformed":     {info(`{"pid":42`), nil, 0, volume.ErrPrecondition, untold},
		"no status":     {&runtime.ContainerStatusResponse{}, nil, 0, volume.ErrNotFound, "container c does not run"},
		"ended":         {&runtime.ContainerStatusResponse{Status: &runtime.ContainerStatus{State: runtime.ContainerState_CONTAINER_EXITED}}, nil, 0, volume.ErrNotFound, "container c does not run"},
		"no container":  {nil, status.Error(codes.NotFound, "no such container"), 0, volume.ErrNotFound, "look at container c: not found: no such container"},
		"down":          {nil, status.Error(codes.Unavailable, "server is not initialized yet"), 0, volume.ErrPrecondition, "server is not initialized yet"},
		"does not know": {nil, status.Error(codes.Unimplemented, "unknown method"), 0, cri.ErrUnsupported, "look at container c"},
	} {
		t.Run(name, func(t *testing.T) {
			client := (&fake{status: func(_ context.Context, request *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
				if request.GetContainerId() != "c" || !request.GetVerbose() {
					return nil, status.Errorf(codes.InvalidArgument, "asked for %v", request)
				}
				return test.response, test.err
			}}).dial(t)
			pid, err := client.PID(rig.Context(t), "c")
			if pid != test.pid || (err == nil) != (test.want == nil) {
				t.Errorf("got %d, %v", pid, err)
			}
			if test.want != nil {
				wantError(t, err, test.want, test.says)
			}
		})
	}
}

// A failure of the runtime itself is no fault of anybody's request.
func TestFailure(t *testing.T) {
	client := (&fake{pods: func(context.Context) (*runtime.ListPodSandboxResponse, error) {
		return nil, status.Error(codes.Unknown, "the database is broken")
	}}).dial(t)
	_, err := client.Pods(rig.Context(t))
	for _, sentinel := range []error{volume.ErrNotFound, volume.ErrPrecondition, volume.ErrInvalid, cri.ErrUnsupported} {
		if errors.Is(err, sentinel) {
			t.Errorf("got %v, which is %v", err, sentinel)
		}
	}
	if err == nil || !strings.Contains(err.Error(), "the database is broken") || !strings.Contains(err.Error(), "cri.sock") {
		t.Errorf("got %v", err)
	}
}

// A runtime that does not answer keeps nobody waiting for good.
func TestDeadline(t *testing.T) {
	deadlines := make(chan bool, 3)
	waits := func(ctx context.Context) error {
		_, has := ctx.Deadline()
		deadlines <- has
		<-ctx.Done()
		return ctx.Err()
	}
	client := (&fake{
		pods: func(ctx context.Context) (*runtime.ListPodSandboxResponse, error) { return nil, waits(ctx) },
		containers: func(ctx context.Context, _ *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
			return nil, waits(ctx)
		},
		status: func(ctx context.Context, _ *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
			return nil, waits(ctx)
		},
	}).dial(t)
	for name, call := range map[string]func(context.Context) error{
		"pods":       func(ctx context.Context) error { _, err := client.Pods(ctx); return err },
		"containers": func(ctx context.Context) error { _, err := client.Containers(ctx); return err },
		"pid":        func(ctx context.Context) error { _, err := client.PID(ctx, "c"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			// The client's own deadline is longer than a test should wait: that it
			// has one is seen at the other end.
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- call(ctx) }()
			if !<-deadlines {
				t.Error("the call has no deadline")
			}
			cancel()
			wantError(t, <-ended, context.Canceled, "")

			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			wantError(t, call(ctx), volume.ErrPrecondition, "does not answer")
		})
	}
}

// A runtime that was away is found again.
func TestRestart(t *testing.T) {
	socket, ctx := filepath.Join(t.TempDir(), "cri.sock"), rig.Context(t)
	client := dial(t, socket)
	one := &fake{pods: func(context.Context) (*runtime.ListPodSandboxResponse, error) {
		return &runtime.ListPodSandboxResponse{Items: []*runtime.PodSandbox{{}}}, nil
	}}
	for range 2 {
		_, err := client.Pods(ctx)
		wantError(t, err, volume.ErrPrecondition, "the container runtime at "+socket+" does not answer")
		stop := one.serve(t, socket)
		for {
			pods, err := client.Pods(ctx)
			if err == nil {
				if len(pods) != 1 {
					t.Errorf("the pods are %v", pods)
				}
				break
			}
			wantError(t, err, volume.ErrPrecondition, "does not answer")
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		stop()
	}
}

// Annotations may be long, and pods many: kubelet takes 16 MiB, and so is it here.
func TestLongAnswer(t *testing.T) {
	long := map[string]string{"example.org/long": strings.Repeat("x", 256<<10)}
	client := (&fake{pods: func(context.Context) (*runtime.ListPodSandboxResponse, error) {
		response := &runtime.ListPodSandboxResponse{}
		for range 60 {
			response.Items = append(response.Items, &runtime.PodSandbox{Annotations: long})
		}
		return response, nil
	}}).dial(t)
	if pods, err := client.Pods(rig.Context(t)); err != nil || len(pods) != 60 {
		t.Errorf("%d pods, %v", len(pods), err)
	}
}
