package cri_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestFindSocket(t *testing.T) {
	root := t.TempDir()
	listen := func(path string) {
		path = filepath.Join(root, path)
		rig.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		listener, err := net.Listen("unix", path)
		rig.Must(t, err)
		t.Cleanup(func() { listener.Close() })
	}
	want := func(path string) {
		t.Helper()
		if got, err := cri.FindSocket(root); err != nil || got != filepath.Join(root, path) {
			t.Errorf("got %s, %v; want %s", got, err, path)
		}
	}
	wantNone := func() {
		t.Helper()
		got, err := cri.FindSocket(root)
		wantError(t, err, volume.ErrNotFound, "run/containerd/containerd.sock")
		if got != "" {
			t.Errorf("got %s", got)
		}
	}
	wantNone()
	// A file is no socket.
	rig.Must(t, os.MkdirAll(filepath.Join(root, "run/crio"), 0o755))
	rig.Must(t, os.WriteFile(filepath.Join(root, "run/crio/crio.sock"), nil, 0o600))
	wantNone()
	listen("run/cri-dockerd.sock")
	want("run/cri-dockerd.sock")
	listen("run/k3s/containerd/containerd.sock")
	want("run/k3s/containerd/containerd.sock")
	// What is named by a link is found by it.
	listen("elsewhere.sock")
	rig.Must(t, os.MkdirAll(filepath.Join(root, "run/containerd"), 0o755))
	rig.Must(t, os.Symlink("../../elsewhere.sock", filepath.Join(root, "run/containerd/containerd.sock")))
	want("run/containerd/containerd.sock")
}
