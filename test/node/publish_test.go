package node

import (
	"os"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestPublishedDeviceIsTheDisk(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	rig.WriteAt(t, target, "written by the pod", 4096)
	if got := rig.ReadAt(t, disk.Backing, 18, 4096); got != "written by the pod" {
		t.Errorf("on the disk there is %q", got)
	}
	rig.Must(t, volume.Unpublish(ctx, target))
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		t.Errorf("the target is still there: %v", err)
	}
	rig.Must(t, volume.Unstage(ctx))
	if entries, err := os.ReadDir(volume.Staging); err != nil || len(entries) != 0 {
		t.Errorf("left in the staging folder: %v %v", entries, err)
	}
}
