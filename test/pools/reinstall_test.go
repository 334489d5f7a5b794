package pools

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A node is installed anew: kubelet's directory and the plugin's state are gone, the
// media and the configuration are not. The plugin knows each volume again, with its
// bytes (docs/guides/recover-node.md).
func TestReinstalledNode(t *testing.T) {
	medium := rig.NewDisk(t, 48*rig.MiB)
	adopt(t, medium.Path)
	config := fmt.Sprintf("[{name: files, file: {directory: %s, capacity: 64Mi}}, {name: pool, disk: {match: {paths: [%s]}}}]",
		filepath.Join(rig.Filesystem(t, "xfs", 320*rig.MiB), "pool"), medium.Path)
	binary := rig.Build(t, "")
	ctx := rig.Context(t)
	install := func() *rig.Process {
		return rig.StartWithPools(t, config, binary, rig.KubeletDir(t), rig.StateDir(t))
	}
	use := func(plugin *rig.Process, id string, with func(device string)) {
		t.Helper()
		v := plugin.Provisioned(t, id)
		target := v.Target(t, "pod-1")
		rig.Must(t, v.Stage(ctx))
		rig.Must(t, v.Publish(ctx, target))
		with(target)
		rig.Must(t, v.Unpublish(ctx, target))
		rig.Must(t, v.Unstage(ctx))
	}
	first := install()
	var ids []string
	for _, pool := range []string{"files", "pool"} {
		request := createRequest(name, size)
		request.Parameters["pool"] = pool
		response, err := first.CreateVolume(ctx, request)
		rig.Must(t, err)
		id := response.GetVolume().GetVolumeId()
		use(first, id, func(device string) { rig.WriteAt(t, device, data+id, 4096) })
		ids = append(ids, id)
	}
	first.Kill()
	second := install()
	listed, err := second.ListVolumes(ctx, &csi.ListVolumesRequest{})
	rig.Must(t, err)
	var found []string
	for _, entry := range listed.GetEntries() {
		found = append(found, entry.GetVolume().GetVolumeId())
	}
	slices.Sort(ids)
	slices.Sort(found)
	if !slices.Equal(found, ids) {
		t.Fatalf("found %v, want %v", found, ids)
	}
	for _, id := range ids {
		use(second, id, func(device string) {
			if got := rig.ReadAt(t, device, len(data+id), 4096); got != data+id {
				t.Errorf("%s has %q", id, got)
			}
		})
		_, err := second.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		rig.Must(t, err)
	}
}
