package disk_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestStatusAndMetrics(t *testing.T) {
	ours, occupied := rig.NewDisk(t, diskSize), rig.NewDisk(t, diskSize)
	rig.WriteAt(t, occupied.Path, "x", 0)
	pool := newPool(t, match(ours, occupied))
	create(t, pool, "a", 4*rig.MiB)
	create(t, pool, "b", 5*rig.MiB, "none")
	rig.Must(t, pool.Delete(rig.Context(t), "b"))
	status := pool.Status()
	want := []disk.Member{{Path: ours.Path, ID: readTable(t, ours).Table.Disk.String(), Size: roomSize, Free: roomSize - 9*rig.MiB, Unwiped: 5 * rig.MiB}}
	if diff := cmp.Diff(want, status.Disks); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	wantRefused(t, pool, occupied, "occupied", "it has data: unknown data at 0")

	got := gather(t, pool)
	name := filepath.Base(ours.Path)
	for metric, value := range map[string]float64{
		"disks state=adopted":                                              1,
		"disks state=occupied":                                             1,
		"bytes disk=" + name + " kind=total":                               roomSize,
		"bytes disk=" + name + " kind=free":                                roomSize - 9*rig.MiB,
		"bytes disk=" + name + " kind=unwiped":                             5 * rig.MiB,
		"bytes disk=" + name + " kind=wiping":                              0,
		"refused disk=" + filepath.Base(occupied.Path) + " state=occupied": 1,
	} {
		if found, exists := got[metric]; !exists || found != value {
			t.Errorf("%s is %v, want %v", metric, found, value)
		}
	}
}

// gather returns the metrics of a pool by their short names and labels.
func gather(t *testing.T, pool *disk.Pool) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	rig.Must(t, registry.Register(pool))
	families, err := registry.Gather()
	rig.Must(t, err)
	found := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			words := []string{strings.TrimPrefix(family.GetName(), "rawblock_csi_disk_pool_")}
			for _, label := range metric.GetLabel() {
				if label.GetName() != "pool" {
					words = append(words, label.GetName()+"="+label.GetValue())
				}
			}
			slices.Sort(words[1:])
			found[strings.Join(words, " ")] = metric.GetGauge().GetValue()
		}
	}
	return found
}
