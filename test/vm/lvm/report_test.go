package lvm_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	host "github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What the real lvm reports is read as what was made, whatever the host's settings for
// people are.
func TestReport(t *testing.T) {
	m := newGroup(t, 512, 40*rig.MiB, 24*rig.MiB)
	vg := m.group
	l, ctx := host.New(program.New(""), func() ([]string, error) { return []string{m.disks[0].Path, m.disks[1].Path}, nil }), rig.Context(t)
	rig.Must(t, l.CreateLinear(ctx, vg, host.Attributes{Name: "thick", Tags: []string{"a=1", "b/c"}, Size: 50 * rig.MiB}))
	run(t, "lvm", "lvreduce", "--force", "--size", "4m", vg+"/thick")
	run(t, "lvm", "lvextend", "--size", "8m", vg+"/thick", m.disks[1].Path)
	run(t, "lvm", "lvcreate", "--yes", "--type", "thin-pool", "--chunksize", "128k", "--size", "16m", "--poolmetadatasize", "4m", "--name", "tp", vg)
	rig.Must(t, l.CreateThin(ctx, vg, "tp", host.Attributes{Name: "thin", Tags: []string{"c"}, Size: 32 * rig.MiB}))
	rig.Must(t, l.Snapshot(ctx, vg, "thin", host.Attributes{Name: "snap", Tags: []string{"d"}, Size: 32 * rig.MiB, ReadOnly: true}))
	group, err := l.Report(ctx, vg)
	rig.Must(t, err)
	uuids := map[string]string{}
	for i := range group.Volumes {
		v := &group.Volumes[i]
		uuids[v.Name] = v.UUID
		if slices.Sort(v.Extents); v.Name != "thick" {
			v.Extents = nil // Those of parts of others.
		}
	}
	want := host.Group{
		Name: vg, ExtentSize: extent, Size: 62 * rig.MiB, Free: (62 - 8 - 16 - 4 - 4) * rig.MiB, // The last: spare metadata.
		Disks: []string{m.disks[0].Path, m.disks[1].Path},
		Volumes: []host.Volume{
			{Name: "thick", Size: 8 * rig.MiB, Tags: []string{"a=1", "b/c"}, Extents: []string{m.disks[0].Path + ":0-3", m.disks[1].Path + ":0-3"}},
			{Name: "tp", Size: 16 * rig.MiB, Thin: &host.ThinPool{ChunkSize: 128 << 10, MetadataSize: 4 * rig.MiB, Zero: true, Active: true}},
			{Name: "thin", Size: 32 * rig.MiB, Tags: []string{"c"}, Pool: "tp"},
			{Name: "snap", Size: 32 * rig.MiB, Tags: []string{"d"}, Pool: "tp"},
		},
	}
	ignore := cmp.Options{
		cmpopts.IgnoreFields(host.Group{}, "UUID"), cmpopts.IgnoreFields(host.Volume{}, "UUID"), cmpopts.IgnoreFields(host.ThinPool{}, "Metadata"), cmpopts.EquateEmpty(),
		cmpopts.SortSlices(func(a, b host.Volume) bool { return a.Name < b.Name }),
	}
	if diff := cmp.Diff(want, group, ignore); diff != "" {
		t.Errorf("the report differs (-want +got):\n%s", diff)
	}
	t.Log(run(t, "lvm", "fullreport", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary",
		"--configreport", "vg", "--options", "vg_name,vg_uuid,vg_size,vg_extent_size,vg_exported,vg_permissions",
		"--configreport", "pv", "--options", "pv_name,pv_uuid,pv_free,pv_missing,pv_allocatable",
		"--configreport", "lv", "--options", "lv_name,lv_uuid,lv_size,lv_tags,pool_lv,lv_layout,lv_metadata_size,lv_when_full,data_percent,metadata_percent,lv_health_status,lv_check_needed",
		"--configreport", "seg", "--options", "lv_uuid,chunk_size,zero,seg_pe_ranges", "--configreport", "pvseg", "--select", `pv_name=""`, vg))
	rig.Must(t, l.Remove(ctx, vg, uuids["thick"]))
	rig.Must(t, l.Remove(ctx, vg, uuids["thick"]))
	rig.Must(t, l.Deactivate(ctx, vg, uuids["thin"]))
	if err := l.CreateLinear(ctx, vg, host.Attributes{Name: "thin", Size: extent}); err == nil {
		t.Error("a name was given twice")
	} else {
		t.Log(err)
	}
	if err := l.CreateLinear(ctx, vg, host.Attributes{Name: "large", Size: 1 << 40}); err == nil {
		t.Error("more than there is")
	} else {
		t.Log(fmt.Sprint(err))
	}
}
