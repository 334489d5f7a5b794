package node

import (
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// kubernetes #109132: the device vanished, and the pod could not be torn down.
// vsphere-csi-driver #338: unpublish wanted to know more than the target.
func TestDeviceGoneAtEachPoint(t *testing.T) {
	plugin := rig.NewPlugin(t, nil)
	newVolume := func(t *testing.T, disk *rig.Disk) (*rig.Volume, *rig.Disk, string) {
		volume := plugin.NewVolume(t, t.Name()[len("TestDeviceGoneAtEachPoint/"):], disk.Path)
		return volume, disk, volume.Target(t, "pod-1")
	}
	tearDown := func(t *testing.T, volume *rig.Volume, target string) {
		t.Helper()
		rig.Must(t, volume.Unpublish(rig.Context(t), target))
		wantAbsent(t, target)
		rig.Must(t, volume.Unstage(rig.Context(t)))
		wantEmpty(t, volume.Staging)
	}
	t.Run("before stage", func(t *testing.T) {
		volume, disk, target := newVolume(t, rig.NewDisk(t, 8*rig.MiB))
		disk.Pull(t)
		wantCode(t, volume.Stage(rig.Context(t)), codes.NotFound)
		tearDown(t, volume, target)
	})
	t.Run("before publish", func(t *testing.T) {
		volume, disk, target := newVolume(t, rig.NewDisk(t, 8*rig.MiB))
		rig.Must(t, volume.Stage(rig.Context(t)))
		disk.Pull(t)
		wantCode(t, volume.Publish(rig.Context(t), target), codes.NotFound)
		tearDown(t, volume, target)
	})
	t.Run("medium only", func(t *testing.T) {
		volume, disk, target := newVolume(t, rig.NewLoop(t, 8*rig.MiB, 512))
		rig.Must(t, volume.Stage(rig.Context(t)))
		disk.Detach(t)
		wantCode(t, volume.Publish(rig.Context(t), target), codes.NotFound)
		tearDown(t, volume, target)
	})
	t.Run("while published", func(t *testing.T) {
		volume, disk, target := newVolume(t, rig.NewDisk(t, 8*rig.MiB))
		rig.Must(t, volume.Stage(rig.Context(t)))
		rig.Must(t, volume.Publish(rig.Context(t), target))
		disk.Pull(t)
		wantAbsent(t, disk.Path)
		// Opening it would make the loop driver add a device of that number anew.
		wantCode(t, volume.Publish(rig.Context(t), target), codes.NotFound)
		_, err := plugin.NodeGetVolumeStats(rig.Context(t), &csi.NodeGetVolumeStatsRequest{VolumeId: volume.ID, VolumePath: target})
		wantCode(t, err, codes.NotFound)
		tearDown(t, volume, target)
	})
	t.Run("while published read-only", func(t *testing.T) {
		volume, disk, target := newVolume(t, rig.NewDisk(t, 8*rig.MiB))
		rig.Must(t, volume.Stage(rig.Context(t)))
		rig.Must(t, volume.PublishReadOnly(rig.Context(t), target))
		disk.Pull(t) // A view holds a loop device, so its medium goes when that is released.
		tearDown(t, volume, target)
	})
	t.Run("while open", func(t *testing.T) {
		volume, disk, target := newVolume(t, rig.NewDisk(t, 8*rig.MiB))
		rig.Must(t, volume.Stage(rig.Context(t)))
		rig.Must(t, volume.Publish(rig.Context(t), target))
		pod, err := os.OpenFile(target, os.O_RDWR, 0)
		rig.Must(t, err)
		defer pod.Close()
		disk.Pull(t)
		tearDown(t, volume, target)
	})
}

// The same device number can belong to another disk from one moment to the next;
// only the sequence number tells (cloud-provider-openstack #679 and others).
func TestNumberReusedBetweenStageAndPublish(t *testing.T) {
	plugin, ctx := rig.NewPlugin(t, nil), rig.Context(t)
	disk, other := rig.NewDisk(t, 8*rig.MiB), rig.NewDisk(t, 8*rig.MiB)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	other.TakePlaceOf(t, disk)

	wantCode(t, volume.Publish(ctx, target), codes.FailedPrecondition)
	wantCode(t, volume.Stage(ctx), codes.FailedPrecondition)
	// The node at the target opens the other disk.
	_, err := plugin.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: volume.ID, VolumePath: target})
	wantCode(t, err, codes.NotFound)
	rig.Must(t, volume.Unpublish(ctx, target))
	// Without pins, the administrator's word is that the path is the disk.
	wantCode(t, volume.Publish(ctx, target), codes.FailedPrecondition)
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	rig.Must(t, volume.Unpublish(ctx, target))
	rig.Must(t, volume.Unstage(ctx))
}

// longhorn #2474: pods stuck in Terminating, resource busy.
func TestBusyTargetIsDetached(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	pod, err := os.OpenFile(target, os.O_RDWR, 0)
	rig.Must(t, err)
	defer pod.Close()
	lock := lockLikeKubelet(t, target)
	if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY { //nolint:errorlint // A raw errno.
		t.Fatalf("the target is not busy: %v", err)
	}
	rig.Must(t, volume.Unpublish(ctx, target))
	wantAbsent(t, target)
	// Who had it open goes on until the end.
	if _, err := pod.WriteAt([]byte("last words"), 0); err != nil {
		t.Error(err)
	}
	unlockLikeKubelet(t, lock)
	rig.Must(t, volume.Unstage(ctx))
}

// osc-bsu-csi-driver #130: a double mount that unmount never finished.
func TestUnpublishPeelsAllMounts(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	nodes := mountsAt(t, disk.Path)
	for range 3 {
		rig.Must(t, unix.Mount(disk.Path, target, "", unix.MS_BIND, ""))
		// Where /dev is shared, mount(2) puts this one into its peer group.
		rig.Must(t, unix.Mount("", target, "", unix.MS_PRIVATE, ""))
	}
	if mounts := mountsAt(t, target); mounts != 4 {
		t.Errorf("%d mounts on the target, want 4", mounts)
	}
	// What is stacked on a target must not appear on the host's own node.
	if mounts := mountsAt(t, disk.Path); mounts != nodes {
		t.Errorf("%d mounts on %s, want %d", mounts, disk.Path, nodes)
	}
	rig.Must(t, volume.Unpublish(ctx, target))
	wantAbsent(t, target)
}

func TestUnpublishOfWhatIsNotThere(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	rig.Must(t, volume.Unpublish(ctx, volume.Target(t, "pod-1")))
	rig.Must(t, volume.Unpublish(ctx, plugin.KubeletDir+"/no/such/directory/pod-1"))
	rig.Must(t, os.WriteFile(plugin.KubeletDir+"/file", nil, 0o600))
	rig.Must(t, volume.Unpublish(ctx, plugin.KubeletDir+"/file/pod-1"))
	rig.Must(t, os.RemoveAll(volume.Staging))
	rig.Must(t, volume.Unstage(ctx))
}
