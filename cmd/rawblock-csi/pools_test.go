package main

import (
	"context"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/config"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Pools of every kind, two of each, as a node's configuration describes them.
func TestOpenPools(t *testing.T) {
	rig.RequireRoot(t)
	dir, small, large := t.TempDir(), rig.NewDisk(t, 48*rig.MiB), rig.NewDisk(t, 64*rig.MiB)
	settings, err := config.Parse([]byte(`pools:
- {name: files-1, file: {directory: ` + dir + `/1, capacity: 1Mi}}
- {name: files-2, file: {directory: ` + dir + `/2, capacity: 1Mi, overcommit: 2}}
- {name: disks-1, disk: {match: {paths: [` + small.Path + `]}}}
- {name: disks-2, disk: {match: {paths: [` + large.Path + `]}, layout: whole, wipe: zero}}
- {name: group-1, lvm: {volumeGroup: rawblock-missing}}
- {name: group-2, lvm: {volumeGroup: rawblock-missing, thinPool: tp0, overcommit: 2}}
`))
	rig.Must(t, err)
	opened, err := openPools(t.Context(), settings.Pools, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	defer opened.close()
	for _, name := range []string{"files-1", "files-2", "disks-1", "disks-2", "group-1", "group-2"} {
		if opened[name] == nil {
			t.Errorf("there is no pool %s among %v", name, opened)
		}
	}
	for name, want := range map[string]bool{"group-1": false, "group-2": true} {
		if _, can := opened[name].(interface {
			DeleteSnapshot(ctx context.Context, name string) error
		}); can != want {
			t.Errorf("pool %s makes snapshots: %t", name, can)
		}
	}
	registry := prometheus.NewRegistry()
	for _, collector := range opened.collectors() {
		rig.Must(t, registry.Register(collector))
	}
	families, err := registry.Gather()
	rig.Must(t, err)
	if len(families) == 0 {
		t.Error("there are no metrics")
	}

	// One that cannot be opened keeps none of the others.
	settings.Pools[3].Disk.Layout = "odd"
	opened.close()
	if _, err := openPools(t.Context(), settings.Pools, blockdev.NewSysfs("/sys")); err == nil {
		t.Error("an odd layout is taken")
	}
	again, err := openPools(t.Context(), settings.Pools[:3], blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	again.close()
}
