package driver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/health"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/socket"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// drainTimeout is how long running calls may take to end once the plugin is
// told to stop: less than the 30 seconds that Kubernetes leaves a container.
const drainTimeout = 25 * time.Second

// streamWorkers is how many goroutines are kept for calls; more are started when
// these are busy. One that is kept has the stack that a call needs; growing it
// anew took a sixth of the time of a publish.
const streamWorkers = 8

// maxNodeID is the longest node ID in bytes (CSI specification 1.13, NodeGetInfoResponse).
const maxNodeID = 256

// Options say what a plugin is made of.
type Options struct {
	// Endpoint is the CSI socket: unix:///path or /path.
	Endpoint string
	// NodeID is the name of the Kubernetes node.
	NodeID string
	// Version is the version of the plugin.
	Version string
	// KubeletDir is kubelet's --root-dir.
	KubeletDir string
	// Publisher publishes devices.
	Publisher *publish.Publisher
	// Attachments are the devices that were given to running containers; nil where
	// that is not done.
	Attachments attachments
	// Inflight are the volumes that a call is under way for. Who else works on
	// volumes locks them there too; nil where nobody does.
	Inflight *inflight.Names
	// RegistrationDir is kubelet's plugins_registry, or empty where a sidecar registers the plugin.
	RegistrationDir string
	// MetricsAddress is where HTTP is served, or empty.
	MetricsAddress string
	// MaxVolumes is the number of volumes that fit on the node; 0: any.
	MaxVolumes int64
	// Devices opens the devices of volumes that an administrator made.
	Devices devices
	// Encryption opens encrypted volumes; nil where the plugin cannot.
	Encryption encryption
	// Keys are the encryption keys that the node has; nil where it has none.
	Keys keys
	// Pools are what volumes are provisioned from, by their names; without any,
	// there is no Controller service.
	Pools map[string]Pool
	// ControllerExpansion offers ControllerExpandVolume, which is of use only
	// where every call reaches the node of its volume.
	ControllerExpansion bool
	// Monitor finds what is wrong with devices; nil: one that only this package has.
	Monitor *health.Monitor
	// Collectors are served among the metrics.
	Collectors []prometheus.Collector
	// Sysfs is the kernel's device tree.
	Sysfs blockdev.Sysfs
}

// Check returns an error for options with which no plugin can run, before
// anything is made. Errors: volume.ErrInvalid.
func (o Options) Check() error {
	if o.NodeID == "" || len(o.NodeID) > maxNodeID {
		return fmt.Errorf("%w: the node ID %q must have 1 to %d bytes; set --node-id to the name of the Kubernetes node",
			volume.ErrInvalid, o.NodeID, maxNodeID)
	}
	_, err := newKubeletDir(o.KubeletDir)
	return err
}

// Run serves the plugin until ctx ends, then lets running calls end, and
// returns nil. Nothing that is published changes when it stops. The logger of
// ctx (klog.FromContext) is that of all calls.
//
// Errors: volume.ErrInvalid for an option; volume.ErrPrecondition where another
// process has the socket; whatever keeps the plugin from serving.
func Run(ctx context.Context, options Options) error {
	logger := klog.FromContext(ctx)
	if err := options.Check(); err != nil {
		return err
	}
	probe, err := newProbe(options)
	if err != nil {
		return err
	}
	release, err := options.Publisher.Confine(options.KubeletDir)
	if err != nil {
		return err
	}
	defer release()
	metrics := prometheus.NewRegistry()
	calls, err := newCalls(logger, metrics)
	if err != nil {
		return err
	}
	for _, collector := range options.Collectors {
		if err := metrics.Register(collector); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	path, err := socketPath(options.Endpoint)
	if err != nil {
		return err
	}
	listener, err := socket.Listen(ctx, path)
	if err != nil {
		return err
	}
	server := grpc.NewServer(append(bounds(), grpc.UnaryInterceptor(calls.intercept), grpc.NumStreamWorkers(streamWorkers))...)
	reports := options.register(server, probe.paths, probe.check)
	for _, collector := range []prometheus.Collector{
		newHealthMetrics(reports, logger),
		newPoolMetrics(options.Pools, options.Publisher, logger),
		newBuildInfo(options.Version),
	} {
		if err := metrics.Register(collector); err != nil {
			listener.Close() //nolint:errcheck,gosec // It has served nobody.
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, server, netutil.LimitListener(listener, maxConnections)) })
	group.Go(func() error { return reports.monitor.Follow(ctx) })
	ready := probe.check
	if options.RegistrationDir != "" {
		registration := newRegistration(path, logger)
		group.Go(func() error { return registration.serve(ctx, options.RegistrationDir) })
		group.Go(func() error { return registration.wait(ctx) })
		ready = func() error { return errors.Join(probe.check(), registration.check()) }
	}
	if options.MetricsAddress != "" {
		group.Go(func() error { return serveHTTP(ctx, options.MetricsAddress, newHandler(path, ready, metrics)) })
	}
	logger.Info("Serving", "driver", Name, "version", options.Version, "node", options.NodeID, "socket", path)
	return group.Wait()
}

// register gives the server the CSI services, and returns what they report of the
// health of volumes.
func (o Options) register(server *grpc.Server, paths kubeletDir, probe func() error) *reports {
	attachments, calls := o.Attachments, o.Inflight
	if attachments == nil {
		attachments = noAttachments{}
	}
	if calls == nil {
		calls = &inflight.Names{}
	}
	volumes := volumes{node: o.NodeID, pools: o.Pools, named: o.Devices, encryption: o.Encryption, keys: o.Keys}
	if volumes.encryption == nil {
		volumes.encryption = noEncryption{}
	}
	if volumes.keys == nil {
		volumes.keys = noKeys{}
	}
	identity := &identity{version: o.Version, probe: probe, provisions: len(o.Pools) > 0, snapshots: len(volumes.snapshotters()) > 0}
	monitor := o.Monitor
	if monitor == nil {
		monitor = health.New(o.Sysfs)
	}
	reports := &reports{volumes: volumes, attachments: attachments, publisher: o.Publisher, monitor: monitor}
	csi.RegisterIdentityServer(server, identity)
	csi.RegisterNodeServer(server, &node{
		volumes:     volumes,
		attachments: attachments,
		maxVolumes:  o.MaxVolumes,
		paths:       paths,
		publisher:   o.Publisher,
		sysfs:       o.Sysfs,
		reports:     reports,
		looks:       linux.NewLimit(lookWait, math.MaxInt),
		inflight:    calls,
	})
	if len(o.Pools) > 0 {
		csi.RegisterControllerServer(server, &controller{
			volumes:     volumes,
			expansion:   o.ControllerExpansion,
			publisher:   o.Publisher,
			attachments: attachments,
			reports:     reports,
			inflight:    calls,
		})
	}
	return reports
}

// serve serves until ctx ends, then lets running calls end, but for those that take
// too long: what waits for a disk that does not answer cannot be interrupted.
func serve(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			server.GracefulStop() // It returns only after the last call.
		}()
		select {
		case <-drained:
		case <-time.After(drainTimeout):
			server.Stop()
		}
	}()
	// Where ctx has ended before it could begin, Serve says so.
	if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	<-stopped
	return nil
}
