package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/rawblock-csi/rawblock-csi/pkg/socket"
)

// registration answers kubelet's plugin watcher, so that no sidecar has to
// (k8s.io/kubelet/pkg/apis/pluginregistration/v1): kubelet finds the socket in
// its registration directory, asks who is there, and says how it went.
type registration struct {
	registerapi.UnimplementedRegistrationServer
	// endpoint is the path of the CSI socket, as kubelet sees it.
	endpoint string
	logger   klog.Logger
	// refused holds kubelet's reason for not registering the driver.
	refused    chan error
	registered atomic.Bool
}

func newRegistration(endpoint string, logger klog.Logger) *registration {
	return &registration{endpoint: endpoint, logger: logger, refused: make(chan error, 1)}
}

// serve answers kubelet in its registration directory until ctx ends. The socket
// goes with it, which tells kubelet that the driver is not served.
func (r *registration) serve(ctx context.Context, directory string) error {
	listener, err := socket.Listen(ctx, registrationSocket(directory))
	if err != nil {
		return fmt.Errorf("register with kubelet: %w", err)
	}
	server := grpc.NewServer(bounds()...)
	registerapi.RegisterRegistrationServer(server, r)
	return serve(ctx, server, netutil.LimitListener(listener, maxConnections))
}

// wait returns kubelet's refusal, which ends the plugin: kubelet asks again once
// the socket is made anew.
func (r *registration) wait(ctx context.Context) error {
	select {
	case err := <-r.refused:
		return err
	case <-ctx.Done():
		return nil
	}
}

// check returns an error until kubelet has registered the driver.
func (r *registration) check() error {
	if !r.registered.Load() {
		return errors.New("kubelet has not registered the driver yet: is --registration-dir kubelet's plugins_registry?")
	}
	return nil
}

// registrationSocket is the name that kubelet expects in its registration
// directory, as node-driver-registrar makes it.
func registrationSocket(directory string) string {
	return filepath.Join(directory, Name+"-reg.sock")
}

// GetInfo tells kubelet which driver is here and where it answers.
func (r *registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type:     registerapi.CSIPlugin,
		Name:     Name,
		Endpoint: r.endpoint,
		// Kubelet compares this with the versions of CSI it speaks, by major number.
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus learns how kubelet's registration went.
func (r *registration) NotifyRegistrationStatus(_ context.Context, status *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	r.registered.Store(status.GetPluginRegistered())
	if status.GetPluginRegistered() {
		r.logger.Info("Registered with kubelet")
	} else {
		select {
		case r.refused <- fmt.Errorf("kubelet refused to register the driver: %s", status.GetError()):
		default: // The first refusal ends the plugin already.
		}
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}
