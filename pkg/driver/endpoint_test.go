package driver

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Whoever stops the plugin before it has begun to serve has not broken it.
func TestServeThatNeverBegan(t *testing.T) {
	server := grpc.NewServer()
	server.Stop()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	must(t, serve(ctx, server, listenAt(t, filepath.Join(t.TempDir(), "csi.sock"))))
}

func TestSocketPath(t *testing.T) {
	for endpoint, want := range map[string]string{
		"unix:///csi/csi.sock": "/csi/csi.sock",
		"unix:/csi/csi.sock":   "/csi/csi.sock",
		"/csi/csi.sock":        "/csi/csi.sock",
		"unix:///with space":   "/with space",
		"/unix:/x":             "/unix:/x",
		"":                     "",
		"/":                    "",
		"unix:":                "",
		"unix:///":             "",
		"csi.sock":             "",
		"unix:csi.sock":        "",
		"unix://csi/csi.sock":  "",
		"unix:////csi.sock":    "",
		"//csi.sock":           "",
		"UNIX:///csi.sock":     "",
		"tcp://0.0.0.0:10000":  "",
		"vsock://2:1":          "",
		" unix:///csi.sock":    "",
	} {
		got, err := socketPath(endpoint)
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%q: got %q, %v; want %q", endpoint, got, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), `"`+endpoint+`"`) {
			t.Errorf("%q does not name the endpoint", err)
		}
	}
}

func FuzzSocketPath(f *testing.F) {
	for _, endpoint := range []string{"unix:///a", "unix:/a", "/a", "unix://a", "unix:", "//a", ""} {
		f.Add(endpoint)
	}
	f.Fuzz(func(t *testing.T, endpoint string) {
		path, err := socketPath(endpoint)
		if err != nil {
			return
		}
		scheme, ok := strings.CutSuffix(endpoint, path)
		if !ok || scheme != "" && scheme != "unix:" && scheme != "unix://" || !filepath.IsAbs(path) || path == "/" {
			t.Errorf("%q became %q", endpoint, path)
		}
	})
}

// listenAt serves a socket until the test ends.
func listenAt(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	return listener
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
