package rig

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
)

// NodeID is the name of the node that a plugin of the rig is on.
const NodeID = "node-of-the-rig"

// Plugin is the real plugin, served on a socket, and the paths of one volume.
type Plugin struct {
	csi.IdentityClient
	csi.ControllerClient
	csi.NodeClient
	// Socket is the path of the CSI socket.
	Socket string
	// KubeletDir is the kubelet directory.
	KubeletDir string
	// StateDir is the directory of its records.
	StateDir string
}

// NewPlugin serves the plugin from this process, until the test ends. Volumes
// may name loop devices; pools there are where they are given.
func NewPlugin(t testing.TB, pools map[string]driver.Pool) *Plugin {
	t.Helper()
	return NewPluginWith(t, func(options *driver.Options) { options.Pools = pools })
}

// NewPluginWith does the same with options that the test has changed.
func NewPluginWith(t testing.TB, change func(*driver.Options)) *Plugin {
	t.Helper()
	kubeletDir := KubeletDir(t)
	sysfs, stateDir := blockdev.NewSysfs("/sys"), StateDir(t)
	publisher, err := publish.New(stateDir, sysfs)
	Must(t, err)
	options := driver.Options{
		Endpoint:   filepath.Join(t.TempDir(), "csi.sock"),
		NodeID:     NodeID,
		Version:    "test",
		KubeletDir: kubeletDir,
		Publisher:  publisher,
		Devices:    static.New(DevicePatterns(), sysfs),
		Sysfs:      sysfs,

		ControllerExpansion: true,
	}
	change(&options)
	Serve(t, options)
	plugin := Connect(t, options.Endpoint, kubeletDir)
	plugin.StateDir = stateDir
	return plugin
}

// Serve runs a plugin in this process until the test ends.
func Serve(t testing.TB, options driver.Options) {
	t.Helper()
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(0), ktesting.BufferLogs(true)))
	// Calls made while the test is taken down still need it.
	ctx, stop := context.WithCancel(klog.NewContext(context.WithoutCancel(t.Context()), logger))
	ended := make(chan error, 1)
	go func() { ended <- driver.Run(ctx, options) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the plugin ended with: %v", err)
		}
	})
}

// Connect returns the plugin that serves, or will serve in a moment, on a socket.
func Connect(t testing.TB, socket, kubeletDir string) *Plugin {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond},
			MinConnectTimeout: time.Minute,
		}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	Must(t, err)
	t.Cleanup(func() { conn.Close() })
	return &Plugin{
		IdentityClient:   csi.NewIdentityClient(conn),
		ControllerClient: csi.NewControllerClient(conn),
		NodeClient:       csi.NewNodeClient(conn),
		Socket:           socket,
		KubeletDir:       kubeletDir,
	}
}

// Volume is one volume of a plugin, with its paths as kubelet chooses them.
type Volume struct {
	// ID is the volume's handle.
	ID string
	// Device is the path that the volume names, if an administrator made it.
	Device string
	// Staging is the staging directory.
	Staging string
	// Context is the volume_context.
	Context map[string]string
	// Secrets are those of NodeStageVolume.
	Secrets map[string]string
	// Mode is the access mode.
	Mode   csi.VolumeCapability_AccessMode_Mode
	plugin *Plugin
}

// NewVolume makes the paths for a volume on the device with the given path.
func (p *Plugin) NewVolume(t testing.TB, id, device string) *Volume {
	t.Helper()
	v := p.Provisioned(t, id)
	v.Device, v.Context = device, map[string]string{static.DeviceAttribute: device}
	return v
}

// Provisioned makes the paths for a volume of a pool.
func (p *Plugin) Provisioned(t testing.TB, id string) *Volume {
	t.Helper()
	staging := filepath.Join(p.KubeletDir, volumeDevices, "staging", dirName(id))
	Must(t, os.MkdirAll(staging, 0o750))
	return &Volume{ID: id, Staging: staging, plugin: p, Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}
}

// volumeDevices is kubelet's directory for raw block volumes.
const volumeDevices = "plugins/kubernetes.io/csi/volumeDevices"

// directoryName stands for a volume's ID in kubelet's paths, which have the name of
// the PersistentVolume there.
func dirName(id string) string { return strings.NewReplacer("/", "-", "@", "-").Replace(id) }

// Target returns the target path of the volume for a pod, whose directory exists.
func (v *Volume) Target(t testing.TB, pod string) string {
	t.Helper()
	dir := filepath.Join(v.plugin.KubeletDir, volumeDevices, "publish", dirName(v.ID))
	Must(t, os.MkdirAll(dir, 0o750))
	return filepath.Join(dir, pod)
}

// Capability is the volume's capability.
func (v *Volume) Capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: v.Mode},
	}
}

// Stage calls NodeStageVolume.
func (v *Volume) Stage(ctx context.Context) error {
	_, err := v.plugin.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.ID, StagingTargetPath: v.Staging, VolumeCapability: v.Capability(), VolumeContext: v.Context, Secrets: v.Secrets,
	})
	return err
}

// Unstage calls NodeUnstageVolume.
func (v *Volume) Unstage(ctx context.Context) error {
	_, err := v.plugin.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.ID, StagingTargetPath: v.Staging})
	return err
}

// Publish calls NodePublishVolume for writing.
func (v *Volume) Publish(ctx context.Context, target string) error {
	return v.publish(ctx, target, false)
}

// PublishReadOnly calls NodePublishVolume with readonly.
func (v *Volume) PublishReadOnly(ctx context.Context, target string) error {
	return v.publish(ctx, target, true)
}

func (v *Volume) publish(ctx context.Context, target string, readOnly bool) error {
	_, err := v.plugin.NodePublishVolume(ctx, v.PublishRequest(target, readOnly))
	return err
}

// PublishRequest is the request of Publish and PublishReadOnly.
func (v *Volume) PublishRequest(target string, readOnly bool) *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId: v.ID, StagingTargetPath: v.Staging, TargetPath: target,
		VolumeCapability: v.Capability(), VolumeContext: v.Context, Readonly: readOnly,
	}
}

// Unpublish calls NodeUnpublishVolume.
func (v *Volume) Unpublish(ctx context.Context, target string) error {
	_, err := v.plugin.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.ID, TargetPath: target})
	return err
}

// Context returns a context that ends before the test binary's own time limit.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
