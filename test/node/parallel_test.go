package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestManyVolumesAtOnce(t *testing.T) {
	const volumes = 64
	plugin, ctx := rig.NewPlugin(t, nil), rig.Context(t)
	type job struct {
		*rig.Volume
		target   string
		readOnly bool
	}
	var jobs []job
	for i := range volumes {
		volume := plugin.NewVolume(t, fmt.Sprintf("vol-%d", i), rig.NewDisk(t, rig.MiB).Path)
		jobs = append(jobs, job{volume, volume.Target(t, "pod-1"), i%2 == 1})
	}
	errs := make([]error, volumes)
	var wait sync.WaitGroup
	for i, job := range jobs {
		wait.Go(func() {
			publish := job.Publish
			if job.readOnly {
				publish = job.PublishReadOnly
			}
			errs[i] = errors.Join(job.Stage(ctx), publish(ctx, job.target))
		})
	}
	wait.Wait()
	rig.Must(t, errors.Join(errs...))
	for _, job := range jobs {
		wantDevicePublished(t, job.target)
		wait.Go(func() { rig.Must(t, errors.Join(job.Unpublish(ctx, job.target), job.Unstage(ctx))) })
	}
	wait.Wait()
	for _, job := range jobs {
		wantAbsent(t, job.target)
		wantEmpty(t, job.Staging)
	}
}

// Calls for one volume exclude each other: whatever they answer, the target is
// whole afterwards.
func TestRacingCallsForOneVolume(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	volume.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(ctx))
	var wait sync.WaitGroup
	for i := range 200 {
		call := volume.Publish
		if i%2 == 1 {
			call = volume.Unpublish
		}
		wait.Go(func() {
			if code := status.Code(call(ctx, target)); code != codes.OK && code != codes.Aborted {
				t.Errorf("code %v", code)
			}
		})
	}
	wait.Wait()
	if mounts := mountsAt(t, target); mounts > 1 {
		t.Errorf("%d mounts on the target", mounts)
	}
	rig.Must(t, volume.Publish(ctx, target))
	if mounts := mountsAt(t, target); mounts != 1 {
		t.Errorf("%d mounts on the target", mounts)
	}
	rig.Must(t, volume.Unpublish(ctx, target))
	wantAbsent(t, target)
}

// A caller that has gone does not leave a call half done.
func TestCancelledCall(t *testing.T) {
	plugin, disk := rig.NewPlugin(t, nil), rig.NewDisk(t, rig.MiB)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Stage(rig.Context(t)))
	for range 50 {
		ctx, cancel := context.WithCancel(rig.Context(t))
		go cancel()
		if code := status.Code(volume.Publish(ctx, target)); code != codes.OK && code != codes.Canceled && code != codes.Aborted {
			t.Errorf("code %v", code)
		}
	}
	// A call whose caller has gone may still be running, or about to.
	for _, call := range []func(context.Context, string) error{volume.Publish, volume.Unpublish} {
		for status.Code(call(rig.Context(t), target)) == codes.Aborted {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
	}
	rig.Must(t, volume.Publish(rig.Context(t), target))
	wantDevice(t, target, disk)
	rig.Must(t, volume.Unpublish(rig.Context(t), target))
}
