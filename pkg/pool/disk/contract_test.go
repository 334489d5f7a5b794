package disk_test

import (
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/contract"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestContract(t *testing.T) {
	for name, test := range map[string]struct {
		layout     string
		blockSize  uint32
		sizes      []int64
		parameters map[string]string
	}{
		"partitions":                 {disk.LayoutPartition, 512, []int64{72 * rig.MiB}, nil},
		"partitions of zeros, 4 KiB": {disk.LayoutPartition, 4096, []int64{72 * rig.MiB}, map[string]string{"wipe": "zero"}},
		"whole disks":                {disk.LayoutWhole, 512, []int64{72 * rig.MiB, 80 * rig.MiB, 88 * rig.MiB}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // Each has disks of its own, and mostly waits for them.
			contract.Suite{
				New: func(t testing.TB) contract.Medium {
					m := &disks{layout: test.layout}
					for _, size := range test.sizes {
						m.disks = append(m.disks, rig.NewDiskWithBlockSize(t, size, test.blockSize))
						m.want += uint64(size) - 4*rig.MiB
					}
					return m
				},
				Single:     test.layout == disk.LayoutWhole,
				Parameters: test.parameters,
			}.Run(t)
		})
	}
}

// disks are a medium.
type disks struct {
	layout string
	disks  []*rig.Disk
	pool   *disk.Pool
	// want is the capacity of the pool once the disks are wiped, 0 after that.
	want uint64
}

func (d *disks) Open(t testing.TB) driver.Pool {
	t.Helper()
	if d.pool != nil {
		d.pool.Close()
	} else {
		t.Cleanup(func() { d.pool.Close() })
	}
	var match disk.Selector
	for _, member := range d.disks {
		match.Paths = append(match.Paths, member.Path)
	}
	pool, err := disk.New(klog.NewContext(t.Context(), logr.Discard()), "disks",
		disk.Options{Match: match, Layout: d.layout}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	d.pool = pool
	for d.want > 0 { // Adopted disks are wiped first.
		capacity, err := pool.Capacity(t.Context(), nil)
		rig.Must(t, err)
		if capacity.Available >= d.want {
			d.want = 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	return pool
}
