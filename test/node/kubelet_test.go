package node

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What kubelet does around the calls (pkg/volume/csi/csi_block.go and
// pkg/volume/util/volumepathhandler in Kubernetes 1.37): it binds what is
// published onto a global map path, locks that with a loop device, calls
// everything again when it restarts, and removes its directories at the end.
func TestLifeAsKubeletLivesIt(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
		volume := plugin.NewVolume(t, "vol", disk.Path)
		target := volume.Target(t, "pod-uid")
		publish := volume.Publish
		if readOnly {
			publish = volume.PublishReadOnly
		}
		rig.Must(t, volume.Stage(ctx))
		rig.Must(t, publish(ctx, target))

		dir := filepath.Join(plugin.KubeletDir, "plugins/kubernetes.io/csi/volumeDevices/vol/dev")
		rig.Must(t, os.MkdirAll(dir, 0o750))
		global := filepath.Join(dir, "pod-uid")
		rig.Must(t, bind(target, global))
		lock := lockLikeKubelet(t, global)

		// Kubelet restarts under the running container.
		rig.Must(t, volume.Stage(ctx))
		rig.Must(t, publish(ctx, target))
		if mounts := mountsAt(t, target); mounts != 1 {
			t.Errorf("%d mounts on the target", mounts)
		}

		unlockLikeKubelet(t, lock)
		rig.Must(t, unix.Unmount(global, 0))
		rig.Must(t, volume.Unpublish(ctx, target))
		rig.Must(t, volume.Unstage(ctx))
		// os.Remove, as kubelet does it, fails for a directory that is not empty.
		rig.Must(t, os.Remove(filepath.Dir(target)))
		rig.Must(t, os.Remove(volume.Staging))
	}
}

// A chmod of what is published must not change the host's own node.
func TestHostNodeCannotBeChangedThroughATarget(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	before := lstat(t, disk.Path)
	if err := os.Chmod(target, 0o777); err == nil {
		t.Error("chmod of the target succeeded")
	}
	if file, err := os.OpenFile(target, os.O_RDWR|os.O_TRUNC, 0); err == nil {
		file.Close()
	}
	if after := lstat(t, disk.Path); after != before {
		t.Errorf("the host's node is %+v, was %+v", after, before)
	}
	rig.Must(t, volume.Unpublish(ctx, target))
}

func TestKubeletDirIsALink(t *testing.T) {
	dir, disk, ctx := rig.KubeletDir(t), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	link := filepath.Join(t.TempDir(), "kubelet")
	rig.Must(t, os.Symlink(dir, link))
	sysfs := blockdev.NewSysfs("/sys")
	publisher, err := publish.New(rig.StateDir(t), sysfs)
	rig.Must(t, err)
	options := driver.Options{
		Endpoint: filepath.Join(t.TempDir(), "csi.sock"), NodeID: rig.NodeID, Version: "test",
		KubeletDir: link, Publisher: publisher, Devices: static.New(rig.DevicePatterns(), sysfs), Sysfs: sysfs,
	}
	rig.Serve(t, options)
	// Kubelet may send its paths with the link or without.
	for _, path := range []string{link, dir} {
		plugin := rig.Connect(t, options.Endpoint, path)
		volume := plugin.NewVolume(t, "vol", disk.Path)
		target := volume.Target(t, "pod-1")
		rig.Must(t, volume.Stage(ctx))
		rig.Must(t, volume.Publish(ctx, target))
		wantDevice(t, target, disk)
		rig.Must(t, volume.Unpublish(ctx, target))
		rig.Must(t, volume.Unstage(ctx))
	}
}
