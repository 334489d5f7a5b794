package driver_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// openFunc opens the devices of a test.
type openFunc func(attributes map[string]string) (*blockdev.Device, error)

func (f openFunc) Open(_ context.Context, attributes map[string]string) (*blockdev.Device, error) {
	return f(attributes)
}

// newOptions are those of a plugin that has no devices.
func newOptions(t *testing.T) driver.Options {
	t.Helper()
	sysfs := blockdev.NewSysfs("/sys")
	publisher, err := publish.New(rig.StateDir(t), sysfs)
	rig.Must(t, err)
	return driver.Options{
		Endpoint:   filepath.Join(t.TempDir(), "csi.sock"),
		NodeID:     rig.NodeID,
		Version:    "v1.2.3",
		KubeletDir: rig.KubeletDir(t),
		Publisher:  publisher,
		Devices:    openFunc(nil),
		Sysfs:      sysfs,
	}
}

// server is a plugin that runs in this process.
type server struct {
	*rig.Plugin
	// stop tells it to stop, as SIGTERM does.
	stop context.CancelFunc
	// ended holds what Run returned.
	ended chan error
	// log returns what it has logged, with all details.
	log func() string
}

// start runs a plugin until the test ends.
func start(t *testing.T, options driver.Options) *server {
	t.Helper()
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(5), ktesting.BufferLogs(true)))
	ctx, stop := context.WithCancel(klog.NewContext(context.Background(), logger))
	s := &server{
		Plugin: rig.Connect(t, options.Endpoint, options.KubeletDir),
		stop:   stop,
		ended:  make(chan error, 1),
		log:    logger.GetSink().(ktesting.Underlier).GetBuffer().String,
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		s.ended <- driver.Run(ctx, options)
	}()
	t.Cleanup(func() { stop(); <-finished })
	return s
}

func stageRequest(kubeletDir string) *csi.NodeStageVolumeRequest {
	return &csi.NodeStageVolumeRequest{
		VolumeId:          "vol",
		StagingTargetPath: kubeletDir + "/staging",
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		Secrets: map[string]string{"password": "kept-to-itself"},
	}
}

func TestIdentity(t *testing.T) {
	plugin, ctx := start(t, newOptions(t)), rig.Context(t)
	info, err := plugin.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != driver.Name || info.GetVendorVersion() != "v1.2.3" {
		t.Errorf("got %v, %v", info, err)
	}
	node, err := plugin.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil || node.GetNodeId() != rig.NodeID || node.GetAccessibleTopology().GetSegments()[driver.TopologyKey] != rig.NodeID {
		t.Errorf("got %v, %v", node, err)
	}
}

func TestRunRefusesOptions(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*driver.Options)
		want   error
		says   string
	}{
		"no node ID":           {func(o *driver.Options) { o.NodeID = "" }, volume.ErrInvalid, "--node-id"},
		"node ID too long":     {func(o *driver.Options) { o.NodeID = strings.Repeat("x", 257) }, volume.ErrInvalid, "--node-id"},
		"relative kubelet dir": {func(o *driver.Options) { o.KubeletDir = "kubelet" }, volume.ErrInvalid, `"kubelet" is not an absolute path`},
		"missing kubelet dir":  {func(o *driver.Options) { o.KubeletDir += "/missing" }, os.ErrNotExist, "kubelet directory"},
		"endpoint by TCP":      {func(o *driver.Options) { o.Endpoint = "tcp://0.0.0.0:1" }, volume.ErrInvalid, "tcp://0.0.0.0:1"},
		"file at the socket":   {func(o *driver.Options) { rig.Must(t, os.WriteFile(o.Endpoint, nil, 0o600)) }, volume.ErrPrecondition, "is not a socket"},
		"no such address":      {func(o *driver.Options) { o.MetricsAddress = "localhost" }, nil, "--metrics-address"},
	} {
		t.Run(name, func(t *testing.T) {
			options := newOptions(t)
			test.change(&options)
			err := driver.Run(rig.Context(t), options)
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v; want %v and the words %q", err, test.want, test.says)
			}
		})
	}
}

// A second plugin, as in a rolling update, must not take the socket from the first.
func TestTwoPluginsOnOneSocket(t *testing.T) {
	options := newOptions(t)
	first, ctx := start(t, options), rig.Context(t)
	if _, err := first.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := driver.Run(ctx, options); !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("the second ended with %v, want %v", err, volume.ErrPrecondition)
	}
	if _, err := rig.Connect(t, options.Endpoint, "").GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}); err != nil {
		t.Errorf("the first does not answer any more: %v", err)
	}
	first.stop()
	rig.Must(t, <-first.ended)
	if _, err := os.Lstat(options.Endpoint); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left its socket behind: %v", err)
	}
	if _, err := start(t, options).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// What is under way when the plugin is told to stop ends well.
func TestStopLetsRunningCallsEnd(t *testing.T) {
	options, disk := newOptions(t), rig.NewDisk(t, rig.MiB)
	entered, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	options.Devices = openFunc(func(map[string]string) (*blockdev.Device, error) {
		close(entered)
		<-released
		return blockdev.Open(disk.Path, options.Sysfs)
	})
	rig.Must(t, os.Mkdir(options.KubeletDir+"/staging", 0o700))
	plugin := start(t, options)
	answer := make(chan error, 1)
	go func() {
		_, err := plugin.NodeStageVolume(rig.Context(t), stageRequest(options.KubeletDir))
		answer <- err
	}()
	<-entered
	plugin.stop()
	for { // It takes no new calls.
		conn, err := net.Dial("unix", options.Endpoint)
		if err != nil {
			break
		}
		conn.Close()
	}
	select {
	case err := <-plugin.ended:
		t.Fatalf("it ended before the call did: %v", err)
	case err := <-answer:
		t.Fatalf("the call was cut off: %v", err)
	case <-time.After(200 * time.Millisecond): // Time enough to do either.
	}
	release()
	rig.Must(t, <-answer)
	rig.Must(t, <-plugin.ended)
}

func TestPanicEndsOneCallOnly(t *testing.T) {
	options := newOptions(t)
	options.Devices = openFunc(func(map[string]string) (*blockdev.Device, error) { panic("a fault") })
	plugin, ctx := start(t, options), rig.Context(t)
	for range 2 { // The lock of the volume has been given back as well.
		_, err := plugin.NodeStageVolume(ctx, stageRequest(options.KubeletDir))
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "a fault") {
			t.Errorf("got %v, want INTERNAL with the cause", err)
		}
	}
	if _, err := plugin.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}); err != nil {
		t.Errorf("the plugin does not answer any more: %v", err)
	}
	if log := plugin.log(); !strings.Contains(log, "Call panicked") || !strings.Contains(log, "run_test.go") {
		t.Errorf("no stack in the log:\n%s", log)
	}
}

func TestSecretsAreNotLogged(t *testing.T) {
	options := newOptions(t)
	options.Devices = openFunc(func(map[string]string) (*blockdev.Device, error) { return nil, volume.ErrNotFound })
	plugin, ctx := start(t, options), rig.Context(t)
	staging := stageRequest(options.KubeletDir)
	_, stageErr := plugin.NodeStageVolume(ctx, staging)
	_, publishErr := plugin.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: "vol", TargetPath: options.KubeletDir + "/target", StagingTargetPath: staging.GetStagingTargetPath(),
		VolumeCapability: staging.GetVolumeCapability(), Secrets: staging.GetSecrets(),
	})
	for _, err := range []error{stageErr, publishErr} {
		if status.Code(err) != codes.NotFound {
			t.Errorf("got %v, want NOT_FOUND", err)
		}
	}
	log := plugin.log()
	if strings.Contains(log, "kept-to-itself") {
		t.Errorf("a secret is in the log:\n%s", log)
	}
	for _, words := range []string{`method="NodeStageVolume"`, `volume="vol"`, "***stripped***", options.KubeletDir + "/target", "Call failed", `code="NotFound"`} {
		if !strings.Contains(log, words) {
			t.Errorf("the log lacks %q:\n%s", words, log)
		}
	}
}
