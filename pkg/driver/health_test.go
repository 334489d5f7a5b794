package driver_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// healthOf asks as kubelet does for a raw block volume: with its directory of the volume as
// the staging path, and no publish path.
func healthOf(ctx context.Context, t *testing.T, plugin *rig.Plugin, volumeID string) []string {
	t.Helper()
	response, err := plugin.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{
		VolumeId: volumeID, StagingTargetPath: plugin.KubeletDir + "/plugins/kubernetes.io/csi/volumeDevices/pv/dev",
	})
	rig.Must(t, err)
	if response.GetVolumeHealth().GetVolumeId() != volumeID {
		t.Errorf("the answer for %s is about %s", volumeID, response.GetVolumeHealth().GetVolumeId())
	}
	return conditionsOf(response.GetVolumeHealth())
}

func conditionsOf(health *csi.VolumeHealth) []string {
	var found []string
	for _, entry := range health.GetHealthStatuses() {
		found = append(found, fmt.Sprintf("%s %s: %s", entry.GetStatus(), entry.GetReason(), entry.GetMessage()))
	}
	return found
}

func want(t *testing.T, got []string, beginnings ...string) {
	t.Helper()
	if !slices.EqualFunc(got, beginnings, strings.HasPrefix) {
		t.Errorf("got %q, want these beginnings: %q", got, beginnings)
	}
}

// capability is that of a raw block volume of one pod.
var capability = (&rig.Volume{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}).Capability()

func newHealthPlugin(t *testing.T, pools map[string]driver.Pool) (*rig.Plugin, driver.Options) {
	t.Helper()
	rig.RequireRoot(t)
	options := newOptions(t)
	options.Devices = static.New([]string{"/dev/*"}, options.Sysfs)
	options.MetricsAddress = freeAddress(t)
	options.Pools = pools
	return start(t, options).Plugin, options
}

// A volume that an administrator made, from before it is staged to after its disk has
// gone, and another has taken its place.
func TestHealthOfAStaticVolume(t *testing.T) {
	disk, other := rig.NewLoop(t, rig.MiB, 512), rig.NewLoop(t, rig.MiB, 512)
	plugin, options := newHealthPlugin(t, nil)
	ctx, vol := rig.Context(t), plugin.NewVolume(t, "vol", disk.Path)
	_, err := plugin.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: "vol"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("of a volume that nobody knows: %v", err)
	}
	_, err = plugin.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("without an ID: %v", err)
	}
	rig.Must(t, vol.Stage(ctx))
	want(t, healthOf(ctx, t, plugin, "vol"))
	disk.Detach(t)
	want(t, healthOf(ctx, t, plugin, "vol"), "INACCESSIBLE DeviceGone: ")
	_, metrics := get(ctx, t, options, "/metrics")
	for _, line := range []string{`rawblock_csi_health_volumes{reason="DeviceGone"} 1`, `rawblock_csi_health_volumes{reason="IOErrors"} 0`, `rawblock_csi_health_storage{reason="DiskGone"} 0`} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics lack %s", line)
		}
	}
	other.TakePlaceOf(t, disk)
	want(t, healthOf(ctx, t, plugin, "vol"), "INACCESSIBLE DeviceReplaced: block device "+disk.Number().String()+" is another disk")
}

// A volume that could not be staged is told of, with the reason, until it can be.
func TestHealthOfAVolumeThatCannotBeStaged(t *testing.T) {
	plugin, _ := newHealthPlugin(t, nil)
	ctx, vol := rig.Context(t), plugin.NewVolume(t, "vol", "/dev/rawblock-no-such-disk")
	if err := vol.Stage(ctx); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	want(t, healthOf(ctx, t, plugin, "vol"), "INACCESSIBLE DeviceGone: the volume could not be opened: not found: no device at")
	disk := rig.NewLoop(t, rig.MiB, 512)
	vol.Context = map[string]string{static.DeviceAttribute: disk.Path, static.SizeAttribute: "3Mi"}
	if err := vol.Stage(ctx); status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	want(t, healthOf(ctx, t, plugin, "vol"), "INACCESSIBLE DeviceReplaced: the volume could not be opened: ")
	delete(vol.Context, static.SizeAttribute)
	rig.Must(t, vol.Stage(ctx))
	want(t, healthOf(ctx, t, plugin, "vol"))
}

// The volumes of a pool of files: one that is well is not listed; the others are,
// page by page, and by the other calls too.
func TestHealthOfAPoolOfFiles(t *testing.T) {
	directory := rig.Filesystem(t, "ext4", 64*rig.MiB)
	pool, err := file.New(t.Context(), "files", file.Options{Directory: directory}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	plugin, _ := newHealthPlugin(t, map[string]driver.Pool{"files": pool})
	ctx, ids := rig.Context(t), map[string]string{}
	for _, name := range []string{"well", "unstaged", "deleted", "cut", "damaged"} {
		made, err := plugin.CreateVolume(ctx, &csi.CreateVolumeRequest{
			Name: name, VolumeCapabilities: []*csi.VolumeCapability{capability},
			CapacityRange: &csi.CapacityRange{RequiredBytes: rig.MiB}, Parameters: map[string]string{"thin": "true"},
		})
		rig.Must(t, err)
		ids[name] = made.GetVolume().GetVolumeId()
	}
	for _, name := range []string{"well", "deleted", "cut"} {
		rig.Must(t, plugin.Provisioned(t, ids[name]).Stage(ctx))
	}
	dir := filepath.Join(directory, "volumes")
	rig.Must(t, os.Remove(dir+"/deleted/data"))
	rig.Must(t, os.Truncate(dir+"/cut/data", 4096))
	rig.Must(t, os.WriteFile(dir+"/damaged/record.json", []byte("{"), 0o600))

	wanted := map[string]string{
		"deleted": "DATA_LOSS BackingDeleted: ",
		"cut":     "DATA_LOSS SizeShrank: loop",
		"damaged": "INACCESSIBLE RecordDamaged: pool files: volume damaged cannot be used",
	}
	listed := map[string]bool{}
	for token, pages := "", 0; ; pages++ {
		page, err := plugin.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{MaxEntries: 1, StartingToken: token})
		rig.Must(t, err)
		for _, entry := range page.GetEntries() {
			listed[entry.GetVolumeId()] = true
		}
		if token = page.GetNextToken(); token == "" {
			break
		}
	}
	for name, id := range ids {
		got := healthOf(ctx, t, plugin, id)
		response, err := plugin.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		rig.Must(t, err)
		for _, conditions := range [][]string{got, conditionsOf(response.GetVolumeHealth())} {
			if wanted[name] == "" {
				want(t, conditions)
			} else {
				want(t, conditions, wanted[name])
			}
		}
		if listed[id] != (wanted[name] != "") {
			t.Errorf("%s is listed: %t", name, listed[id])
		}
	}
	_, err = plugin.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: "files/none@" + rig.NodeID})
	if status.Code(err) != codes.NotFound {
		t.Errorf("of no volume: %v", err)
	}
	_, err = plugin.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{StartingToken: "none"})
	if status.Code(err) != codes.Aborted {
		t.Errorf("with a token that is none: %v", err)
	}
}

// The filesystem of a pool fills up, and becomes read-only.
func TestHealthOfAFilesystem(t *testing.T) {
	directory := rig.Filesystem(t, "ext4", 64*rig.MiB)
	pool, err := file.New(t.Context(), "files", file.Options{Directory: directory, Overcommit: 4}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	plugin, _ := newHealthPlugin(t, map[string]driver.Pool{"files": pool})
	ctx := rig.Context(t)
	storage := func() []string {
		response, err := plugin.NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
		rig.Must(t, err)
		var found []string
		for _, entry := range response.GetBackendHealth() {
			found = append(found, fmt.Sprintf("%s %s: %s", entry.GetStatus(), entry.GetReason(), entry.GetMessage()))
		}
		return found
	}
	made, err := plugin.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: "thin", VolumeCapabilities: []*csi.VolumeCapability{capability},
		CapacityRange: &csi.CapacityRange{RequiredBytes: 128 * rig.MiB}, Parameters: map[string]string{"thin": "true"},
	})
	rig.Must(t, err)
	id := made.GetVolume().GetVolumeId()
	want(t, storage())
	want(t, healthOf(ctx, t, plugin, id))
	fill, written := filepath.Join(directory, "fill"), 0
	ballast, err := os.Create(fill)
	rig.Must(t, err)
	defer ballast.Close()
	grow := func(until string) {
		t.Helper()
		for len(storage()) == 0 || !strings.Contains(storage()[0], until) {
			if _, err := ballast.Write(make([]byte, 256<<10)); err != nil {
				t.Fatalf("%s was not told before the filesystem was full (%d written): %v", until, written, err)
			}
			rig.Must(t, ballast.Sync())
			written++
		}
	}
	grow("PoolFilling")
	want(t, storage(), "STORAGE_DEGRADED PoolFilling: pool files: the filesystem of "+directory)
	want(t, healthOf(ctx, t, plugin, id), "DEGRADED PoolFilling: ")
	grow("PoolFull")
	want(t, healthOf(ctx, t, plugin, id), "DEGRADED PoolFull: ")
	rig.Must(t, os.Remove(fill))
	ballast.Close()
	want(t, storage())
}

// The page of metrics has each reason whatever there is, so that a rule can be written
// before the fault.
func TestHealthMetricsHaveEachReason(t *testing.T) {
	options := newOptions(t)
	options.MetricsAddress = freeAddress(t)
	start(t, options)
	code, body := get(rig.Context(t), t, options, "/metrics")
	if code != http.StatusOK {
		t.Fatal(body)
	}
	for _, reason := range reasonsOfThePage(t) {
		for _, of := range []string{"volumes", "storage"} {
			if line := fmt.Sprintf("rawblock_csi_health_%s{reason=%q} 0\n", of, reason); !strings.Contains(body, line) {
				t.Errorf("the metrics lack %s", line)
			}
		}
	}
}
