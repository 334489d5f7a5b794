package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestStageRequestsThatAreRefused(t *testing.T) {
	plugin, disk := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB)
	for name, test := range map[string]struct {
		change func(*csi.NodeStageVolumeRequest)
		want   codes.Code
	}{
		"no volume":     {func(r *csi.NodeStageVolumeRequest) { r.VolumeId = "" }, codes.InvalidArgument},
		"no path":       {func(r *csi.NodeStageVolumeRequest) { r.StagingTargetPath = "" }, codes.InvalidArgument},
		"relative path": {func(r *csi.NodeStageVolumeRequest) { r.StagingTargetPath = "x" }, codes.InvalidArgument},
		"no capability": {func(r *csi.NodeStageVolumeRequest) { r.VolumeCapability = nil }, codes.InvalidArgument},
		"filesystem": {func(r *csi.NodeStageVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}
		}, codes.FailedPrecondition},
		"no device":     {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext = nil }, codes.InvalidArgument},
		"not a device":  {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["device"] = "/dev/loop-control" }, codes.InvalidArgument},
		"device absent": {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["device"] = "/dev/loop1048575" }, codes.NotFound},
		"wrong size":    {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["size"] = "9Mi" }, codes.FailedPrecondition},
		"no such pin":   {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["serial"] = "S1" }, codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			volume := plugin.NewVolume(t, filepath.Base(t.Name()), disk.Path)
			request := &csi.NodeStageVolumeRequest{
				VolumeId: volume.ID, StagingTargetPath: volume.Staging,
				VolumeCapability: volume.Capability(), VolumeContext: volume.Context,
			}
			test.change(request)
			_, err := plugin.NodeStageVolume(rig.Context(t), request)
			wantCode(t, err, test.want)
			// A final error of NodeStageVolume may never be followed by an unstage.
			wantEmpty(t, volume.Staging)
		})
	}
}

func TestDeviceInUseByTheHostIsRefused(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 32*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	claim := func() *os.File {
		claim, err := os.OpenFile(disk.Path, os.O_RDWR|unix.O_EXCL, 0)
		rig.Must(t, err)
		return claim
	}
	used := claim()
	wantCode(t, volume.Stage(ctx), codes.FailedPrecondition)
	wantEmpty(t, volume.Staging)
	rig.Must(t, used.Close())

	rig.Must(t, volume.Stage(ctx))
	used = claim()
	wantCode(t, volume.Publish(ctx, target), codes.FailedPrecondition)
	wantAbsent(t, target)
	rig.Must(t, used.Close())

	rig.Must(t, volume.Publish(ctx, target))
	// Now it is a pod that uses it: kubelet, restarted, calls everything again
	// under running containers.
	used = claim()
	defer used.Close()
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	rig.Must(t, volume.Unpublish(ctx, target))
	rig.Must(t, volume.Unstage(ctx))
}

// harvester docs #519: after a reboot kubelet publishes without staging, and a
// plain file lies at the staging path.
func TestPublishAfterReboot(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	t.Run("plain file at the staging path", func(t *testing.T) {
		rig.Must(t, os.Remove(volume.Staging))
		rig.Must(t, os.WriteFile(volume.Staging, []byte("not a device"), 0o600))
		rig.Must(t, volume.Publish(ctx, target))
		wantDevice(t, target, disk)
		rig.Must(t, volume.Unpublish(ctx, target))
		rig.Must(t, volume.Unstage(ctx))
		rig.Must(t, os.Remove(volume.Staging))
		rig.Must(t, os.Mkdir(volume.Staging, 0o750))
	})
	t.Run("plain file in the staging directory", func(t *testing.T) {
		foreign := filepath.Join(volume.Staging, "vol")
		rig.Must(t, os.WriteFile(foreign, []byte("not a device"), 0o600))
		rig.Must(t, volume.Publish(ctx, target))
		wantDevice(t, target, disk)
		rig.Must(t, volume.Unpublish(ctx, target))
		rig.Must(t, volume.Unstage(ctx))
		rig.Must(t, os.Remove(foreign))
	})
	t.Run("records of the last boot", func(t *testing.T) {
		rig.Must(t, volume.Stage(ctx))
		records, err := filepath.Glob(plugin.StateDir + "/*")
		rig.Must(t, err)
		if len(records) != 1 {
			t.Fatalf("records %v", records)
		}
		rig.Must(t, os.Remove(records[0]+"/device"))
		rig.Must(t, os.Symlink("device=7:1048575 diskseq=1 mode=SINGLE_NODE_WRITER boot=another volume=vol", records[0]+"/device"))
		rig.Must(t, os.Symlink("mode=SINGLE_NODE_WRITER readonly=true arguments=0 target="+target+"-old", records[0]+"/publication-0"))
		rig.Must(t, os.WriteFile(target, nil, 0o600))
		rig.Must(t, volume.Publish(ctx, target))
		wantDevice(t, target, disk)
		rig.Must(t, volume.Unpublish(ctx, target))
		rig.Must(t, volume.Unstage(ctx))
		wantEmpty(t, plugin.StateDir)
	})
}

// Azure kubernetes-volume-drivers #117: one disk, two users at once.
func TestTwoVolumesOnOneDevice(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	first, second := plugin.NewVolume(t, "vol-1", disk.Path), plugin.NewVolume(t, "vol-2", disk.Path)
	rig.Must(t, first.Stage(ctx))
	wantCode(t, second.Stage(ctx), codes.FailedPrecondition)
	wantCode(t, second.Publish(ctx, second.Target(t, "pod-1")), codes.FailedPrecondition)
	rig.Must(t, first.Unstage(ctx))
	rig.Must(t, second.Stage(ctx))
	rig.Must(t, second.Unstage(ctx))
	// What several nodes share, several volumes may share as well.
	first.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	second.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	rig.Must(t, first.Stage(ctx))
	rig.Must(t, second.Stage(ctx))
}

// kubernetes #43291: only the parent was probed.
func TestDiskAndItsPartitionAreTheSameBlocks(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 16*rig.MiB), rig.Context(t)
	first, second := disk.AddPartition(t, 1), disk.AddPartition(t, 2)
	whole := plugin.NewVolume(t, "whole", disk.Path)
	parts := []*rig.Volume{plugin.NewVolume(t, "part-1", first), plugin.NewVolume(t, "part-2", second)}
	for _, part := range parts {
		rig.Must(t, part.Stage(ctx))
	}
	wantCode(t, whole.Stage(ctx), codes.FailedPrecondition)
	for _, part := range parts {
		rig.Must(t, part.Unstage(ctx))
	}
	rig.Must(t, whole.Stage(ctx))
	wantCode(t, parts[0].Stage(ctx), codes.FailedPrecondition)
	rig.Must(t, whole.Unstage(ctx))
}

// Device names change over a reboot (cloud-provider-openstack #679, hwameistor
// #982, dell/csi-baremetal #559, rook #7918, kubernetes #55314). The links by
// identity move with the disk, and a pin refuses another one.
func TestSwappedNames(t *testing.T) {
	plugin, ctx := rig.NewPlugin(t, nil), rig.Context(t)
	small, large := rig.NewDisk(t, 8*rig.MiB), rig.NewDisk(t, 16*rig.MiB)
	volume := plugin.NewVolume(t, "vol", small.Path)
	volume.Context["size"] = "8Mi"
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Unstage(ctx))
	large.TakePlaceOf(t, small)
	wantCode(t, volume.Stage(ctx), codes.FailedPrecondition)
	wantEmpty(t, volume.Staging)
}

func TestStats(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	// Kubelet's own bind mount of what is published, which it asks about.
	dir := filepath.Join(plugin.KubeletDir, "plugins/kubernetes.io/csi/volumeDevices/vol/dev")
	rig.Must(t, os.MkdirAll(dir, 0o750))
	global := filepath.Join(dir, "pod-uid")
	rig.Must(t, bind(target, global))
	plain := filepath.Join(dir, "plain")
	rig.Must(t, os.WriteFile(plain, nil, 0o600))
	for path, want := range map[string]codes.Code{
		target: codes.OK, global: codes.OK, volume.Staging: codes.OK,
		plain: codes.NotFound, target + "-no": codes.NotFound, "relative": codes.NotFound, disk.Path: codes.NotFound,
		"": codes.InvalidArgument,
	} {
		response, err := plugin.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: volume.ID, VolumePath: path})
		wantCode(t, err, want)
		if want == codes.OK && (len(response.GetUsage()) != 1 || response.GetUsage()[0].GetTotal() != 8*rig.MiB) {
			t.Errorf("stats of %s: %v", path, response)
		}
	}
	rig.Must(t, unix.Unmount(global, 0))
	rig.Must(t, volume.Unpublish(ctx, target))
}

func TestExpand(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	expand := func(required, limit int64) (int64, error) {
		response, err := plugin.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
			VolumeId: volume.ID, VolumePath: target, CapacityRange: &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit},
		})
		return response.GetCapacityBytes(), err
	}
	if size, err := expand(0, 0); err != nil || size != 8*rig.MiB {
		t.Errorf("expanded to %d bytes: %v", size, err)
	}
	_, err := expand(16*rig.MiB, 0)
	wantCode(t, err, codes.OutOfRange)
	disk.Resize(t, 16*rig.MiB)
	if size, err := expand(16*rig.MiB, 16*rig.MiB); err != nil || size != 16*rig.MiB {
		t.Errorf("expanded to %d bytes: %v", size, err)
	}
	_, err = expand(0, 8*rig.MiB)
	wantCode(t, err, codes.OutOfRange)
	rig.Must(t, volume.Unpublish(ctx, target))
}

func TestNodeInfo(t *testing.T) {
	plugin, ctx := rig.NewPlugin(t, nil), rig.Context(t)
	info, err := plugin.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	rig.Must(t, err)
	if info.GetNodeId() != rig.NodeID || info.GetAccessibleTopology().GetSegments()["topology.rawblock.dev/node"] != rig.NodeID {
		t.Errorf("node info %v", info)
	}
	_, err = plugin.Probe(ctx, &csi.ProbeRequest{})
	rig.Must(t, err)
}
