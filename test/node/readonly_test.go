package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// kubernetes #100840: readOnly on a raw block volume was enforced by nobody.
func TestReadOnlyPublishRefusesWrites(t *testing.T) {
	for name, publish := range map[string]func(*rig.Volume) func(string) error{
		"readonly": func(v *rig.Volume) func(string) error {
			return func(target string) error { return v.PublishReadOnly(rig.Context(t), target) }
		},
		// Kubelet sends a reader-only mode with readonly=false.
		"MULTI_NODE_READER_ONLY": func(v *rig.Volume) func(string) error {
			v.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
			return func(target string) error { return v.Publish(rig.Context(t), target) }
		},
		"SINGLE_NODE_READER_ONLY": func(v *rig.Volume) func(string) error {
			v.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
			return func(target string) error { return v.Publish(rig.Context(t), target) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
			volume := plugin.NewVolume(t, "vol", disk.Path)
			target := volume.Target(t, "pod-1")
			do := publish(volume)
			rig.Must(t, volume.Stage(ctx))
			rig.WriteAt(t, disk.Path, "before", 4096)
			rig.Must(t, do(target))
			rig.Must(t, do(target))

			wantUnwritable(t, target)
			if got := rig.ReadAt(t, target, 6, 4096); got != "before" {
				t.Errorf("through the view there is %q", got)
			}
			// The disk stays writable for its other users, and the view follows.
			rig.WriteAt(t, disk.Path, "after!", 8192)
			if got := rig.ReadPastCache(t, target, 6, 8192); got != "after!" {
				t.Errorf("through the view there is %q", got)
			}
			if views := viewsOf(t, disk); views != 1 {
				t.Errorf("%d read-only views", views)
			}
			rig.Must(t, volume.Unpublish(ctx, target))
			if views := viewsOf(t, disk); views != 0 {
				t.Errorf("%d read-only views are left", views)
			}
			rig.Must(t, volume.Unstage(ctx))
		})
	}
}

func TestReadOnlyBesideWritable(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	volume.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	writer, reader := volume.Target(t, "writer"), volume.Target(t, "reader")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, writer))
	rig.Must(t, volume.PublishReadOnly(ctx, reader))
	wantUnwritable(t, reader)
	rig.WriteAt(t, writer, "shared", 0)
	if got := rig.ReadPastCache(t, reader, 6, 0); got != "shared" {
		t.Errorf("the reader sees %q", got)
	}
	wantCode(t, volume.PublishReadOnly(ctx, writer), codes.AlreadyExists)
	wantCode(t, volume.Publish(ctx, reader), codes.AlreadyExists)
	rig.Must(t, volume.Unpublish(ctx, writer))
	wantUnwritable(t, reader)
	rig.Must(t, volume.Unpublish(ctx, reader))
}

// Kubelet locks what is published with a loop device over it, and so opens it
// for writing first.
func TestLosetupOnAReadOnlyTargetSucceeds(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDiskWithBlockSize(t, 8*rig.MiB, 4096), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.PublishReadOnly(ctx, target))
	lock := lockLikeKubelet(t, target)
	// With the lock still held, the pod is torn down all the same.
	rig.Must(t, volume.Unpublish(ctx, target))
	wantAbsent(t, target)
	unlockLikeKubelet(t, lock)
	if views := viewsOf(t, disk); views != 0 {
		t.Errorf("%d read-only views are left after the lock", views)
	}
}

func TestReadOnlyViewGrowsWithTheDisk(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.PublishReadOnly(ctx, target))
	disk.Resize(t, 16*rig.MiB)
	response, err := plugin.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: volume.ID, VolumePath: target, CapacityRange: &csi.CapacityRange{RequiredBytes: 16 * rig.MiB},
	})
	rig.Must(t, err)
	if response.GetCapacityBytes() != 16*rig.MiB {
		t.Errorf("expanded to %d bytes", response.GetCapacityBytes())
	}
	rig.ReadAt(t, target, 6, 12*rig.MiB)
	rig.Must(t, volume.Unpublish(ctx, target))
}

func TestReadOnlyDiskIsPublishedReadOnlyOnly(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	setReadOnly(t, disk, 1)
	defer setReadOnly(t, disk, 0)
	rig.Must(t, volume.Stage(ctx))
	// What the call has begun it undoes, as no other call may follow: the file that
	// an earlier one left, and the record.
	rig.Must(t, os.WriteFile(target, nil, 0o600))
	wantCode(t, volume.Publish(ctx, target), codes.FailedPrecondition)
	wantAbsent(t, target)
	if records, err := filepath.Glob(plugin.StateDir + "/*/publication-*"); err != nil || len(records) > 0 {
		t.Errorf("left of the failed publish: %v %v", records, err)
	}
	rig.Must(t, volume.PublishReadOnly(ctx, target))
	rig.Must(t, volume.Unpublish(ctx, target))
}

func setReadOnly(t *testing.T, disk *rig.Disk, value int) {
	t.Helper()
	file, err := os.Open(disk.Path)
	rig.Must(t, err)
	defer file.Close()
	rig.Must(t, unix.IoctlSetPointerInt(int(file.Fd()), unix.BLKROSET, value))
}

// wantUnwritable checks that nothing can be written through a target. Some
// kernels refuse to open it for writing (EACCES, Linux 6.1), others refuse the
// write (EPERM, Linux 6.18).
func wantUnwritable(t *testing.T, target string) {
	t.Helper()
	wantWriteFails(t, target)
	// A pod that may set devices writable still cannot write to it: the loop
	// driver itself refuses.
	reader, err := os.Open(target)
	rig.Must(t, err)
	defer reader.Close()
	rig.Must(t, unix.IoctlSetPointerInt(int(reader.Fd()), unix.BLKROSET, 0))
	wantWriteFails(t, target)
}

func wantWriteFails(t *testing.T, target string) {
	t.Helper()
	before := rig.ReadAt(t, target, 512, 0)
	writer, err := os.OpenFile(target, os.O_RDWR|unix.O_SYNC, 0)
	if err == nil {
		_, err = writer.WriteAt([]byte("must not arrive"), 0)
		writer.Close()
	}
	if err == nil {
		t.Errorf("a write to %s succeeded", target)
	}
	if after := rig.ReadAt(t, target, 512, 0); after != before {
		t.Errorf("a write to %s arrived", target)
	}
}

// viewsOf counts the loop devices over a disk that are set up. It looks for the
// disk's own node: a lock such as kubelet's lies over the target.
func viewsOf(t *testing.T, disk *rig.Disk) int {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	rig.Must(t, err)
	count := 0
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(backing)) != disk.Path {
			continue
		}
		loop, err := os.Open("/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file))))
		rig.Must(t, err)
		// The device itself is held by another loop device while it is staged.
		if status, err := linux.StatusOfLoop(loop); err == nil && !strings.HasPrefix(status.Label, "rawblock-hold:") {
			count++
		}
		loop.Close()
	}
	return count
}

// lockLikeKubelet takes a loop device over a path with the command that kubelet
// runs (pkg/volume/util/volumepathhandler in Kubernetes).
func lockLikeKubelet(t *testing.T, path string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), "losetup", "-f", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup on %s: %v: %s", path, err, output)
	}
	return strings.TrimSpace(string(output))
}

func unlockLikeKubelet(t *testing.T, loop string) {
	t.Helper()
	if output, err := exec.CommandContext(t.Context(), "losetup", "-d", loop).CombinedOutput(); err != nil {
		t.Fatalf("losetup -d %s: %v: %s", loop, err, output)
	}
}
