package driver_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestHealth(t *testing.T) {
	options := newOptions(t)
	options.MetricsAddress = freeAddress(t)
	plugin, ctx := start(t, options), rig.Context(t)
	if _, err := plugin.Probe(ctx, &csi.ProbeRequest{}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := get(ctx, t, options, path); code != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if code, _ := get(ctx, t, options, "/other"); code != http.StatusNotFound {
		t.Errorf("/other: %d", code)
	}
	// Kubelet cannot reach the plugin any more. A restart makes the socket anew.
	rig.Must(t, os.Remove(options.Endpoint))
	if code, body := get(ctx, t, options, "/healthz"); code != http.StatusServiceUnavailable {
		t.Errorf("without a socket: %d %q", code, body)
	}
	plugin.stop()
	rig.Must(t, <-plugin.ended)
	if _, err := net.Dial("tcp", options.MetricsAddress); err == nil {
		t.Error("HTTP is served after the end")
	}
}

func TestMetrics(t *testing.T) {
	options := newOptions(t)
	options.MetricsAddress = freeAddress(t)
	plugin, ctx := start(t, options), rig.Context(t)
	for range 3 {
		if _, err := plugin.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := plugin.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	if _, err := plugin.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); err != nil {
		t.Fatal(err)
	}
	_, body := get(ctx, t, options, "/metrics")
	for _, line := range []string{
		`{driver_name="csi.rawblock.dev",grpc_status_code="OK",method_name="/csi.v1.Identity/GetPluginInfo"} 3`,
		`{driver_name="csi.rawblock.dev",grpc_status_code="InvalidArgument",method_name="/csi.v1.Node/NodeStageVolume"} 1`,
		`{driver_name="csi.rawblock.dev",grpc_status_code="OK",method_name="/csi.v1.Node/NodeGetInfo"} 1`,
	} {
		if !strings.Contains(body, "csi_plugin_operations_seconds_count"+line+"\n") {
			t.Errorf("lacks %s:\n%s", line, body)
		}
	}
}

func TestRegistration(t *testing.T) {
	options := newOptions(t)
	options.MetricsAddress, options.RegistrationDir = freeAddress(t), t.TempDir()
	plugin, ctx := start(t, options), rig.Context(t)
	kubelet := dialRegistration(t, options)
	info, err := kubelet.GetInfo(ctx, &registerapi.InfoRequest{}, grpc.WaitForReady(true))
	rig.Must(t, err)
	if info.GetType() != "CSIPlugin" || info.GetName() != driver.Name || info.GetEndpoint() != options.Endpoint || strings.Join(info.GetSupportedVersions(), " ") != "1.0.0" {
		t.Errorf("got %v", info)
	}
	for _, registered := range []bool{false, true} {
		if registered {
			_, err := kubelet.NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{PluginRegistered: true})
			rig.Must(t, err)
		}
		code, body := get(ctx, t, options, "/readyz")
		if (code == http.StatusOK) != registered || !registered && !strings.Contains(body, "kubelet has not registered the driver yet") {
			t.Errorf("registered %t: %d %q", registered, code, body)
		}
	}
	plugin.stop()
	rig.Must(t, <-plugin.ended)
	if _, err := os.Lstat(registrationSocket(options)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("kubelet still finds the socket: %v", err)
	}
}

func TestRefusedRegistrationEndsThePlugin(t *testing.T) {
	options := newOptions(t)
	options.RegistrationDir = t.TempDir()
	plugin, ctx := start(t, options), rig.Context(t)
	kubelet := dialRegistration(t, options)
	refusal := &registerapi.RegistrationStatus{Error: "another driver has the name"}
	if _, err := kubelet.NotifyRegistrationStatus(ctx, refusal, grpc.WaitForReady(true)); err != nil {
		t.Errorf("kubelet was not answered: %v", err)
	}
	if err := <-plugin.ended; err == nil || !strings.Contains(err.Error(), "kubelet refused to register the driver: another driver has the name") {
		t.Errorf("the plugin ended with %v", err)
	}
	for _, socket := range []string{options.Endpoint, registrationSocket(options)} {
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s stays behind: %v", socket, err)
		}
	}
}

// One plugin ends the other's registration neither.
func TestRegistrationSocketInUse(t *testing.T) {
	first := newOptions(t)
	first.RegistrationDir = t.TempDir()
	start(t, first)
	kubelet, ctx := dialRegistration(t, first), rig.Context(t)
	_, err := kubelet.GetInfo(ctx, &registerapi.InfoRequest{}, grpc.WaitForReady(true))
	rig.Must(t, err)
	second := newOptions(t)
	second.RegistrationDir = first.RegistrationDir
	if err := driver.Run(ctx, second); err == nil || !strings.Contains(err.Error(), "register with kubelet") || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("the second ended with %v", err)
	}
	if _, err := kubelet.GetInfo(ctx, &registerapi.InfoRequest{}); err != nil {
		t.Errorf("the first does not answer any more: %v", err)
	}
}

func registrationSocket(options driver.Options) string {
	return options.RegistrationDir + "/csi.rawblock.dev-reg.sock"
}

func dialRegistration(t *testing.T, options driver.Options) registerapi.RegistrationClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+registrationSocket(options), grpc.WithTransportCredentials(insecure.NewCredentials()))
	rig.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	return registerapi.NewRegistrationClient(conn)
}

// freeAddress returns an address that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	rig.Must(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

// get asks the plugin by HTTP, as soon as it serves.
func get(ctx context.Context, t *testing.T, options driver.Options, path string) (code int, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+options.MetricsAddress+path, nil)
		rig.Must(t, err)
		response, err := client.Do(request)
		if err != nil && ctx.Err() == nil {
			continue // It does not listen yet.
		}
		rig.Must(t, err)
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		rig.Must(t, err)
		return response.StatusCode, string(content)
	}
}
