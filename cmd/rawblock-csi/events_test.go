package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const eventsPage = "../../docs/reference/events.md"

// The words of the plugin that Kubernetes puts into events are those of the reference. What
// differs from node to node is put in the place of what a test has.
func TestEventsPage(t *testing.T) {
	rig.RequireRoot(t)
	page, err := os.ReadFile(eventsPage)
	rig.Must(t, err)
	disk, dir, sysfs := rig.NewDisk(t, 64*rig.MiB), t.TempDir(), blockdev.NewSysfs("/sys")
	pool, err := file.New(t.Context(), "files", file.Options{Directory: dir, Capacity: 100 * rig.MiB}, sysfs)
	rig.Must(t, err)
	defer pool.Close()
	plugin := rig.NewPluginWith(t, func(options *driver.Options) {
		options.Pools = map[string]driver.Pool{"files": pool}
		options.Devices = static.New([]string{"/dev/loop*", "/dev/disk/by-id/*"}, options.Sysfs)
	})
	ctx := rig.Context(t)
	stage := func(device string, change func(*rig.Volume)) func(context.Context) error {
		return func(ctx context.Context) error {
			volume := plugin.NewVolume(t, "pv", device)
			change(volume)
			return volume.Stage(ctx)
		}
	}
	nothing := func(*rig.Volume) {}
	create := func(size int64, pool string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := plugin.CreateVolume(ctx, &csi.CreateVolumeRequest{
				Name: "pvc-1", CapacityRange: &csi.CapacityRange{RequiredBytes: size}, Parameters: map[string]string{"pool": pool},
				VolumeCapabilities: []*csi.VolumeCapability{plugin.Provisioned(t, "x").Capability()},
			})
			return err
		}
	}
	number := sysfsNumber(t, disk.Path)
	names := strings.NewReplacer(disk.Path+" ("+number+")", "/dev/sdb (8:16)", dir, "/var/lib/rawblock-csi/files",
		plugin.KubeletDir, "/var/lib/kubelet", rig.NodeID, "node-1", "/dev/loop*, ", "")
	for name, fail := range map[string]func(context.Context) error{
		"not allowed":   stage("/dev/vdz", nothing),
		"missing":       stage("/dev/disk/by-id/nvme-X", nothing),
		"another disk":  stage(disk.Path, func(v *rig.Volume) { v.Context["size"] = "1Gi" }),
		"no pin":        stage(disk.Path, func(v *rig.Volume) { v.Context["wwid"] = "eui.1" }),
		"in use":        func(ctx context.Context) error { return claimed(ctx, t, disk.Path, stage(disk.Path, nothing)) },
		"gone":          func(ctx context.Context) error { return plugin.Provisioned(t, "files/pvc-2@node-1").Stage(ctx) },
		"too large":     create(1<<40, "files"),
		"no such pool":  create(1<<20, "fast"),
		"another reads": func(ctx context.Context) error { return secondPod(ctx, t, plugin, disk.Path) },
	} {
		t.Run(name, func(t *testing.T) {
			err := fail(ctx)
			if err == nil {
				t.Fatal("it did not fail")
			}
			if words := names.Replace("rpc error: code = " + status.Code(err).String() + " desc = " + status.Convert(err).Message()); !strings.Contains(string(page), words) {
				t.Errorf("the reference lacks: %s", words)
			}
		})
	}
}

// sysfsNumber returns MAJOR:MINOR of a disk.
func sysfsNumber(t *testing.T, path string) string {
	t.Helper()
	number, err := os.ReadFile("/sys/class/block/" + filepath.Base(path) + "/dev")
	rig.Must(t, err)
	return strings.TrimSpace(string(number))
}

// claimed does something while another has the disk for itself.
func claimed(ctx context.Context, t *testing.T, path string, do func(context.Context) error) error {
	t.Helper()
	holder, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
	rig.Must(t, err)
	defer holder.Close()
	return do(ctx)
}

// secondPod publishes a volume of one pod for another.
func secondPod(ctx context.Context, t *testing.T, plugin *rig.Plugin, device string) error {
	t.Helper()
	volume := plugin.NewVolume(t, "pv", device)
	volume.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	rig.Must(t, volume.Stage(ctx))
	first := volume.Target(t, "uid-1")
	rig.Must(t, volume.Publish(ctx, first))
	defer func() {
		rig.Must(t, volume.Unpublish(ctx, first))
		rig.Must(t, volume.Unstage(ctx))
	}()
	return volume.Publish(ctx, volume.Target(t, "uid-2"))
}
