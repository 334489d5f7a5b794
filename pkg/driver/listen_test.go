package driver

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestListen(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, path string){
		"nothing there": func(*testing.T, string) {},
		"no folder":     func(t *testing.T, path string) { must(t, os.Remove(filepath.Dir(path))) },
		"stale socket": func(t *testing.T, path string) {
			listener := listenAt(t, path)
			listener.SetUnlinkOnClose(false) // As when its process is killed.
			must(t, listener.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "folder", "csi.sock")
			must(t, os.Mkdir(filepath.Dir(path), 0o700))
			prepare(t, path)
			listener, err := listen(t.Context(), path)
			must(t, err)
			info, err := os.Lstat(path)
			must(t, err)
			if want := fs.ModeSocket | 0o600; info.Mode() != want {
				t.Errorf("the socket has mode %v, want %v", info.Mode(), want)
			}
			conn, err := net.Dial("unix", path)
			must(t, err)
			must(t, conn.Close())
			must(t, listener.Close())
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket stays behind: %v", err)
			}
		})
	}
}

func TestListenTakesNothingAway(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, path string)
		says    string
	}{
		"live socket": {func(t *testing.T, path string) { listenAt(t, path) }, "another process serves the socket"},
		"file":        {func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("precious"), 0o600)) }, "is not a socket"},
		"folder":      {func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, "is not a socket"},
		"link": {func(t *testing.T, path string) {
			must(t, os.Symlink(path+"-elsewhere", path))
			listenAt(t, path+"-elsewhere")
		}, "is not a socket"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "csi.sock")
			test.prepare(t, path)
			before, err := os.Lstat(path)
			must(t, err)
			_, err = listen(t.Context(), path)
			if !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v; want %v with the path and %q", err, volume.ErrPrecondition, test.says)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || after.Size() != before.Size() {
				t.Errorf("what was there is now %v (%v)", after, err)
			}
		})
	}
}

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
