package socket_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/socket"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestListen(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, path string){
		"nothing there": func(*testing.T, string) {},
		"no directory":  func(t *testing.T, path string) { must(t, os.Remove(filepath.Dir(path))) },
		"stale socket": func(t *testing.T, path string) {
			listener := listenAt(t, path)
			listener.SetUnlinkOnClose(false) // As when its process is killed.
			must(t, listener.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "directory", "csi.sock")
			must(t, os.Mkdir(filepath.Dir(path), 0o700))
			prepare(t, path)
			listener, err := socket.Listen(t.Context(), path)
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
		"directory":   {func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, "is not a socket"},
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
			_, err = socket.Listen(t.Context(), path)
			if !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v; want %v with the path and %q", err, volume.ErrPrecondition, test.says)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || after.Size() != before.Size() {
				t.Errorf("what was there is now %v (%v)", after, err)
			}
		})
	}
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
