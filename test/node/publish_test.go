package node

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestPublishedDeviceIsTheDisk(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	rig.WriteAt(t, target, "written by the pod", 4096)
	if got := rig.ReadAt(t, disk.Backing, 18, 4096); got != "written by the pod" {
		t.Errorf("on the disk there is %q", got)
	}
	rig.Must(t, volume.Unpublish(ctx, target))
	wantAbsent(t, target)
	rig.Must(t, volume.Unstage(ctx))
	wantEmpty(t, volume.Staging)
}

func TestEveryCallCanBeRepeated(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	publish := func(ctx context.Context) error { return volume.Publish(ctx, target) }
	unpublish := func(ctx context.Context) error { return volume.Unpublish(ctx, target) }
	for _, call := range []func(context.Context) error{volume.Stage, publish, volume.Stage, publish, unpublish, volume.Unstage} {
		for range 3 {
			rig.Must(t, call(ctx))
		}
		if mounts := mountsAt(t, target); mounts > 1 {
			t.Fatalf("%d mounts on the target", mounts)
		}
	}
	wantAbsent(t, target)
	wantEmpty(t, volume.Staging)
}

func TestPublishCompletesAPlainFile(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, os.WriteFile(target, nil, 0o640))
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	wantDevice(t, target, disk)
	rig.Must(t, volume.Unpublish(ctx, target))
	wantAbsent(t, target)
}

func TestForeignTargetIsAnErrorThatLosesNothing(t *testing.T) {
	plugin, disk, other := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.NewDisk(t, 8*rig.MiB)
	file := t.TempDir() + "/file"
	rig.Must(t, os.WriteFile(file, []byte("precious"), 0o644))
	for name, test := range map[string]struct {
		make      func(path string) error
		publish   codes.Code
		unpublish codes.Code
	}{
		"directory":        {func(path string) error { return os.Mkdir(path, 0o755) }, codes.FailedPrecondition, codes.FailedPrecondition},
		"file with data":   {func(path string) error { return os.WriteFile(path, []byte("precious"), 0o644) }, codes.FailedPrecondition, codes.FailedPrecondition},
		"link to the disk": {func(path string) error { return os.Symlink(disk.Path, path) }, codes.FailedPrecondition, codes.FailedPrecondition},
		"dangling link":    {func(path string) error { return os.Symlink("/nowhere", path) }, codes.FailedPrecondition, codes.FailedPrecondition},
		"fifo":             {func(path string) error { return unix.Mkfifo(path, 0o600) }, codes.FailedPrecondition, codes.FailedPrecondition},
		"node by mknod":    {func(path string) error { return mknod(path, disk.Number()) }, codes.FailedPrecondition, codes.FailedPrecondition},
		// A mount at a target is taken down by unpublish, whoever made it: kubelet
		// must be able to end the pod, and a mount holds no data of its own.
		"another device": {func(path string) error { return bind(other.Path, path) }, codes.AlreadyExists, codes.OK},
		"mounted file":   {func(path string) error { return bind(file, path) }, codes.FailedPrecondition, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := rig.Context(t)
			volume := plugin.NewVolume(t, filepath.Base(t.Name()), disk.Path)
			target := volume.Target(t, "pod-1")
			rig.Must(t, test.make(target))
			before := lstat(t, target)
			rig.Must(t, volume.Stage(ctx))
			wantCode(t, volume.Publish(ctx, target), test.publish)
			if after := lstat(t, target); after != before {
				t.Errorf("publish changed the target: %+v, was %+v", after, before)
			}
			wantCode(t, volume.Unpublish(ctx, target), test.unpublish)
			defer func() { rig.Must(t, volume.Unstage(ctx)) }()
			if test.unpublish == codes.OK {
				wantAbsent(t, target)
				return
			}
			if after := lstat(t, target); after != before {
				t.Errorf("unpublish changed the target: %+v, was %+v", after, before)
			}
		})
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	plugin, disk := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(rig.Context(t)))
	for name, test := range map[string]struct {
		change func(*csi.NodePublishVolumeRequest)
		want   codes.Code
	}{
		"no volume":        {func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" }, codes.InvalidArgument},
		"no target":        {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "" }, codes.InvalidArgument},
		"relative target":  {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "pod-1" }, codes.InvalidArgument},
		"target escapes":   {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = plugin.KubeletDir + "/../x" }, codes.InvalidArgument},
		"target elsewhere": {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "/etc/rawblock-test" }, codes.InvalidArgument},
		"no directory":     {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = plugin.KubeletDir + "/no/pod-1" }, codes.FailedPrecondition},
		"no staging":       {func(r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "" }, codes.FailedPrecondition},
		"relative staging": {func(r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "x" }, codes.InvalidArgument},
		"no capability":    {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, codes.InvalidArgument},
		"no access type":   {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil }, codes.InvalidArgument},
		"no access mode":   {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode = nil }, codes.InvalidArgument},
		"filesystem": {func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}
		}, codes.FailedPrecondition},
		"no device":     {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext = nil }, codes.InvalidArgument},
		"other device":  {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["device"] = "/dev/null" }, codes.InvalidArgument},
		"device absent": {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["device"] = "/dev/loop1048575" }, codes.NotFound},
		"wrong size":    {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["size"] = "9Mi" }, codes.FailedPrecondition},
		"wrong wwid":    {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["wwid"] = "naa.5000" }, codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			request := volume.PublishRequest(target, false)
			request.VolumeContext = map[string]string{"device": disk.Path}
			if test.change(request); request.VolumeContext == nil {
				request.VolumeContext = map[string]string{}
			}
			_, err := plugin.NodePublishVolume(rig.Context(t), request)
			wantCode(t, err, test.want)
			wantAbsent(t, target)
		})
	}
}

// The tables of a second publish in the CSI specification, at NodePublishVolume.
func TestSecondPublish(t *testing.T) {
	const ok, exists, precondition = codes.OK, codes.AlreadyExists, codes.FailedPrecondition
	plugin := rig.NewPlugin(t, nil)
	for mode, want := range map[csi.VolumeCapability_AccessMode_Mode]struct{ otherArguments, otherTarget, bothOther codes.Code }{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        {exists, precondition, precondition},
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: {exists, precondition, precondition},
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  {exists, ok, ok},
		csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   {exists, precondition, precondition},
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:    {exists, ok, ok},
		csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER:  {exists, ok, ok},
		csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER:   {exists, ok, ok},
	} {
		t.Run(mode.String(), func(t *testing.T) {
			disk, ctx := rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
			volume := plugin.NewVolume(t, mode.String(), disk.Path)
			volume.Mode = mode
			first, second := volume.Target(t, "pod-1"), volume.Target(t, "pod-2")
			other := *volume
			other.Context = map[string]string{"device": disk.Path, "size": "8Mi"}
			rig.Must(t, volume.Stage(ctx))
			rig.Must(t, volume.Publish(ctx, first))
			wantCode(t, volume.Publish(ctx, first), ok)
			wantCode(t, other.Publish(ctx, first), want.otherArguments)
			wantCode(t, volume.Publish(ctx, second), want.otherTarget)
			rig.Must(t, volume.Unpublish(ctx, second))
			wantCode(t, other.Publish(ctx, second), want.bothOther)
			rig.Must(t, volume.Unpublish(ctx, second))
			wantDevicePublished(t, first)
			// What is gone does not count: the other target may have it now.
			rig.Must(t, volume.Unpublish(ctx, first))
			wantCode(t, volume.Publish(ctx, second), ok)
			rig.Must(t, volume.Unpublish(ctx, second))
			rig.Must(t, volume.Unstage(ctx))
		})
	}
}

func TestSecondPublishWithAnotherAccessMode(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	volume.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	rig.Must(t, volume.Stage(ctx))
	first, second := volume.Target(t, "pod-1"), volume.Target(t, "pod-2")
	rig.Must(t, volume.Publish(ctx, first))
	volume.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	wantCode(t, volume.Publish(ctx, first), codes.AlreadyExists)
	wantCode(t, volume.Publish(ctx, second), codes.FailedPrecondition)
	wantCode(t, volume.Stage(ctx), codes.AlreadyExists)
	rig.Must(t, volume.Unpublish(ctx, first))
}

func TestUnstageWhilePublishedIsRefused(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	wantCode(t, volume.Unstage(ctx), codes.FailedPrecondition)
	rig.Must(t, volume.Unpublish(ctx, target))
	rig.Must(t, volume.Unstage(ctx))
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("got code %v (%v), want %v", got, err, want)
	}
}
