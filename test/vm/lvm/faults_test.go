package lvm_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A thin pool that promised more than it has runs full: who writes gets an error, and
// nobody else anything. It is known before, nothing more is promised, and all goes on
// once an administrator gives it more.
func TestThinPoolRunsFull(t *testing.T) {
	m := newThin(t, 512, 32*rig.MiB)
	m.overcommit = 4
	pool := m.open(t)
	ctx := rig.Context(t)
	create(t, pool, "safe", size)
	create(t, pool, "greedy", 48*rig.MiB)
	safe, greedy := node(t, pool, "safe"), node(t, pool, "greedy")
	rig.Must(t, fill(safe, 's', 0, 4*rig.MiB))
	rig.Must(t, fill(greedy, 'g', 0, 27*rig.MiB)) // 31 of 32 MiB.

	if got := available(t, pool); got != 0 {
		t.Errorf("%d bytes are offered by a thin pool that is nearly full", got)
	}
	_, err := pool.Create(ctx, volume.Spec{Name: "more", Size: sized(size)})
	wantError(t, err, volume.ErrExhausted, "create")
	_, err = pool.Expand(ctx, "safe", sized(2*size))
	wantError(t, err, volume.ErrExhausted, "expand")
	_, err = lvm.ThinPool{Pool: pool}.CreateSnapshot(ctx, "snap", "safe")
	wantError(t, err, volume.ErrExhausted, "snapshot")
	if status := pool.Status(); status.Data < 95 {
		t.Errorf("%+v", status)
	}
	wantMetric(t, pool, "thin_used_ratio", "data", 0.9688) // lvm tells two digits of the percentage.

	if err := fill(greedy, 'g', 27*rig.MiB, 21*rig.MiB); !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) {
		t.Errorf("writing into a full thin pool: %v", err)
	}
	// What is there can be read and overwritten; calls go on.
	wantOnly(t, safe, 's', 0, 4*rig.MiB)
	rig.Must(t, fill(safe, 'S', 0, 4*rig.MiB))
	if list, err := pool.List(ctx); err != nil || len(list) != 2 {
		t.Errorf("lists %v, %v", list, err)
	}
	rig.Must(t, pool.Deactivate(ctx, "safe"))
	wantOnly(t, node(t, pool, "safe"), 'S', 0, 4*rig.MiB)

	run(t, "lvm", "lvextend", "--size", "+16m", m.group+"/"+m.thinPool)
	rig.Must(t, fill(greedy, 'g', 0, 40*rig.MiB))
	wantOnly(t, greedy, 'g', 0, 40*rig.MiB)
	wantOnly(t, node(t, pool, "safe"), 'S', 0, 4*rig.MiB)
	for _, name := range []string{"safe", "greedy"} {
		rig.Must(t, pool.Deactivate(ctx, name))
		rig.Must(t, pool.Delete(ctx, name))
	}
	if got := available(t, pool); got != 4*48*rig.MiB {
		t.Errorf("%d bytes are offered by the empty thin pool", got)
	}
}

// wantMetric checks a metric of a pool, by its short name and label.
func wantMetric(t *testing.T, pool *lvm.Pool, name, label string, want float64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	rig.Must(t, registry.Register(pool))
	families, err := registry.Gather()
	rig.Must(t, err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() != "rawblock_csi_lvm_pool_"+name || label != "" && metric.GetLabel()[0].GetValue() != label {
				continue
			}
			if got := metric.GetGauge().GetValue(); math.Abs(got-want) > 1e-9 {
				t.Errorf("%s of %q is %v, want %v", name, label, got, want)
			}
			return
		}
	}
	t.Errorf("there is no metric %s of %q", name, label)
}

// A thin pool that cannot be used safely is not used, and what to do is said.
func TestThinPoolIsUnfit(t *testing.T) {
	m := newThin(t, 512, 32*rig.MiB)
	thinPool := m.group + "/" + m.thinPool
	spec := volume.Spec{Name: "data", Size: sized(size)}
	m.thinPool = "missing"
	_, err := m.open(t).Create(rig.Context(t), spec)
	wantError(t, err, volume.ErrExhausted, "no thin pool")
	run(t, "lvm", "lvcreate", "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n", "--size", "4m", "--name", m.thinPool, m.group)
	_, err = m.open(t).Create(rig.Context(t), spec)
	wantError(t, err, volume.ErrExhausted, "another logical volume")
	m.thinPool = "tp-0"
	run(t, "lvm", "lvchange", "--zero", "n", thinPool)
	pool := m.open(t)
	_, err = pool.Create(rig.Context(t), spec)
	wantError(t, err, volume.ErrExhausted, "a thin pool that does not zero")
	if got := available(t, pool); got != 0 || pool.Status().Problem == nil {
		t.Errorf("%d bytes are offered; the problem is %v", got, pool.Status().Problem)
	}
	wantMetric(t, pool, "usable", "", 0)
	run(t, "lvm", "lvchange", "--zero", "y", thinPool)
	create(t, pool, "data", size)
	rig.Must(t, pool.Deactivate(rig.Context(t), "data"))

	// Its metadata is damaged: thin_check finds that when it is activated.
	run(t, "lvm", "lvchange", "--activate", "n", thinPool)
	damageMetadata(t, m)
	if _, err := pool.Activate(rig.Context(t), "data"); err == nil || !strings.Contains(err.Error(), "repair") {
		t.Errorf("with damaged metadata: %v", err)
	} else {
		t.Log(err)
	}
	if _, err := pool.Create(rig.Context(t), volume.Spec{Name: "more", Size: sized(size)}); err == nil {
		t.Error("a volume was made with damaged metadata")
	}
}

// damageMetadata overwrites the metadata of a thin pool on its disk.
func damageMetadata(t *testing.T, m *media) {
	t.Helper()
	var first int64
	extents := strings.TrimSpace(run(t, "lvm", "lvs", "--all", "--noheadings", "--options", "seg_pe_ranges", "--select", "lv_name=["+m.thinPool+"_tmeta]", m.group))
	if extents == "" {
		extents = strings.TrimSpace(run(t, "lvm", "lvs", "--all", "--noheadings", "--options", "seg_pe_ranges", m.group+"/"+m.thinPool+"_tmeta"))
	}
	_, err := fmt.Sscanf(extents[strings.LastIndex(extents, ":"):], ":%d-", &first)
	rig.Must(t, err)
	start := strings.TrimSpace(run(t, "lvm", "pvs", "--noheadings", "--units", "b", "--nosuffix", "--options", "pe_start", m.disks[0].Path))
	var offset int64
	_, err = fmt.Sscan(start, &offset)
	rig.Must(t, err)
	rig.Must(t, fill(m.disks[0].Path, 'x', offset+first*extent, extent))
}

// A disk of the volume group has gone: what is on the others goes on, nothing is changed,
// and all is well when it is back.
func TestDiskOfGroupHasGone(t *testing.T) {
	m := newGroup(t, 512, 40*rig.MiB, 40*rig.MiB)
	pool := m.open(t)
	ctx := rig.Context(t)
	create(t, pool, "first", 32*rig.MiB)
	create(t, pool, "second", 32*rig.MiB)
	lost, kept := "second", "first"
	rig.Must(t, fill(node(t, pool, kept), 'k', 0, size))
	rig.Must(t, fill(node(t, pool, lost), 'l', 0, size))
	rig.Must(t, pool.Deactivate(ctx, lost))
	m.disks[1].Unplug(t)

	wantOnly(t, node(t, pool, kept), 'k', 0, size)
	_, err := pool.Activate(ctx, lost)
	wantError(t, err, volume.ErrNotFound, "activate one that has lost its disk")
	_, err = pool.Create(ctx, volume.Spec{Name: "more", Size: sized(extent)})
	wantError(t, err, volume.ErrExhausted, "create")
	wantError(t, pool.Delete(ctx, lost), volume.ErrPrecondition, "delete")
	_, err = pool.Expand(ctx, kept, sized(33*rig.MiB))
	wantError(t, err, volume.ErrPrecondition, "expand")
	if list, err := pool.List(ctx); err != nil || len(list) != 2 {
		t.Errorf("lists %v, %v", list, err)
	}
	if got := available(t, pool); got != 0 {
		t.Errorf("%d bytes are offered", got)
	}
	rig.Must(t, pool.Deactivate(ctx, kept))
	wantOnly(t, node(t, pool, kept), 'k', 0, size)

	m.disks[1].Plug(t)
	eventually(t, "the disk", func() bool { return available(t, pool) > 0 })
	wantOnly(t, node(t, pool, lost), 'l', 0, size)
	rig.Must(t, pool.Deactivate(ctx, kept))
	rig.Must(t, pool.Deactivate(ctx, lost))
	rig.Must(t, pool.Delete(ctx, lost))
}

// The volume group comes later than the plugin, goes, and comes back.
func TestGroupComesAndGoes(t *testing.T) {
	m := newGroup(t, 512, 40*rig.MiB)
	pool := m.open(t)
	ctx := rig.Context(t)
	create(t, pool, "data", size)
	rig.Must(t, fill(node(t, pool, "data"), 'd', 0, size))
	rig.Must(t, pool.Deactivate(ctx, "data"))
	m.disks[0].Unplug(t)
	pool = m.open(t)
	_, err := pool.Activate(ctx, "data")
	wantError(t, err, volume.ErrNotFound, "activate")
	_, err = pool.Get(ctx, "data")
	wantError(t, err, volume.ErrNotFound, "get")
	_, err = pool.Create(ctx, volume.Spec{Name: "data", Size: sized(size)})
	wantError(t, err, volume.ErrExhausted, "create")
	wantError(t, pool.Delete(ctx, "data"), volume.ErrPrecondition, "delete")
	rig.Must(t, pool.Deactivate(ctx, "data"))
	if list, err := pool.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("lists %v, %v", list, err)
	}
	if got := available(t, pool); got != 0 {
		t.Errorf("%d bytes are offered", got)
	}
	m.disks[0].Plug(t)
	eventually(t, "the volume group", func() bool { return available(t, pool) > 0 })
	wantOnly(t, node(t, pool, "data"), 'd', 0, size)
	rig.Must(t, pool.Deactivate(ctx, "data"))
	run(t, "lvm", "vgexport", m.group)
	wantError(t, pool.Delete(ctx, "data"), volume.ErrPrecondition, "delete of an exported group")
	run(t, "lvm", "vgimport", m.group)
	rig.Must(t, pool.Delete(ctx, "data"))
}

// The disk goes while the volume is open: the device can be taken down, and one that
// works is made when the disk is back, though the kernel has another name for it.
func TestDiskGoesWhileOpen(t *testing.T) {
	for name, make := range map[string]func() *media{
		"thick": func() *media { return newGroup(t, 512, 40*rig.MiB) },
		"thin":  func() *media { return newThin(t, 512, 32*rig.MiB) },
	} {
		t.Run(name, func(t *testing.T) {
			m := make()
			pool := m.open(t)
			ctx := rig.Context(t)
			for _, name := range []string{"data", "other"} {
				create(t, pool, name, size)
				rig.Must(t, fill(node(t, pool, name), name[0], 0, size))
			}
			holder, err := os.OpenFile(node(t, pool, "data"), os.O_RDWR|unix.O_EXCL, 0)
			rig.Must(t, err)
			defer holder.Close()
			m.disks[0].Unplug(t)
			_, err = pool.Activate(ctx, "data")
			wantError(t, err, volume.ErrNotFound, "activate")
			for _, name := range []string{"data", "other"} {
				rig.Must(t, pool.Deactivate(ctx, name))
			}
			m.disks[0].Plug(t)
			eventually(t, "the volume group", func() bool { _, err := pool.Get(ctx, "data"); return err == nil })
			_, err = pool.Activate(ctx, "data")
			wantError(t, err, volume.ErrInUse, "activate while somebody has the old one")
			rig.Must(t, holder.Close())
			for _, name := range []string{"data", "other"} {
				wantOnly(t, node(t, pool, name), name[0], 0, size)
				rig.Must(t, pool.Deactivate(ctx, name))
			}
			create(t, pool, "new", size)
		})
	}
}
