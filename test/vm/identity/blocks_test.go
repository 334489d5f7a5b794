package identity

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// layouts are the sizes of blocks that disks come with.
var layouts = map[string]machine.Disk{
	"512n":                {LogicalBlockSize: 512, PhysicalBlockSize: 512},
	"512e":                {LogicalBlockSize: 512, PhysicalBlockSize: 4096},
	"512e, optimal 64 Ki": {LogicalBlockSize: 512, PhysicalBlockSize: 4096, Options: map[string]any{"min_io_size": 32768, "opt_io_size": 65536}},
	"4Kn":                 {LogicalBlockSize: 4096, PhysicalBlockSize: 4096},
}

// Partitions begin where blocks of the medium do, and other tools find the table in
// order.
func TestAlignment(t *testing.T) {
	for _, bus := range buses {
		for name, described := range layouts {
			if bus == machine.NVMe && described.PhysicalBlockSize != described.LogicalBlockSize {
				continue // QEMU's NVMe disks state one size.
			}
			t.Run(fmt.Sprint(bus, ", ", name), func(t *testing.T) {
				described.Bus, described.Size = bus, 40*rig.MiB
				d := machine.Add(t, described)
				pool := openPool(t, disk.Selector{Paths: []string{d.Path}})
				create(t, pool, "a", 5*rig.MiB)
				create(t, pool, "b", 7*rig.MiB)
				for _, name := range []string{"a", "b"} {
					wantAligned(t, d, activate(t, pool, name).Node().Name(), described)
				}
				if said := run(t, "sgdisk", "--verify", d.Path); !strings.Contains(said, "No problems found") || strings.Contains(said, "Caution") {
					t.Errorf("sgdisk says: %s", said)
				}
				if said := run(t, "sfdisk", "--verify", d.Path); !strings.Contains(said, "No errors detected") {
					t.Errorf("sfdisk says: %s", said)
				}
			})
		}
	}
}

// wantAligned checks where a partition begins, and that its blocks are the disk's.
func wantAligned(t *testing.T, d *machine.Plugged, partition string, described machine.Disk) {
	t.Helper()
	number := func(elements ...string) int {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(append([]string{"/sys/block", d.Name}, elements...)...))
		rig.Must(t, err)
		value, err := strconv.Atoi(strings.TrimSpace(string(text)))
		rig.Must(t, err)
		return value
	}
	logical, physical, optimal := number("queue/logical_block_size"), number("queue/physical_block_size"), number("queue/optimal_io_size")
	if logical != described.LogicalBlockSize || physical != described.PhysicalBlockSize {
		t.Errorf("the disk has blocks of %d and %d bytes, not %d and %d", logical, physical, described.LogicalBlockSize, described.PhysicalBlockSize)
	}
	name := filepath.Base(partition)
	start, size := number(name, "start")*512, number(name, "size")*512
	if start%physical != 0 || size%physical != 0 || number(name, "alignment_offset") != 0 || optimal > 0 && start%optimal != 0 {
		t.Errorf("%s has %d bytes at %d: not aligned to %d bytes, or to %d", name, size, start, physical, optimal)
	}
	device, err := os.Open(partition)
	rig.Must(t, err)
	defer device.Close()
	if got, err := linux.LogicalBlockSize(device); err != nil || int(got) != logical {
		t.Errorf("%s has blocks of %d bytes (%v), not %d", name, got, err, logical)
	}
}

// A pool of files on a filesystem on each kind of disk: the page cache is passed by
// where the blocks of the volume are at least as large as those of the disk.
func TestFilesOnDisks(t *testing.T) {
	for name, described := range layouts {
		for _, kind := range []string{"ext4", "xfs"} {
			for _, block := range []int{512, 4096} {
				t.Run(fmt.Sprintf("%s, %s, blocks of %d", name, kind, block), func(t *testing.T) {
					described.Size = size
					d := machine.Add(t, described)
					run(t, "mkfs."+kind, "-q", d.Path)
					place := mount(t, d.Path, kind)
					pool, err := file.New(quiet(t), "files", file.Options{Directory: place + "/pool"}, sysfs)
					rig.Must(t, err)
					t.Cleanup(pool.Close)
					ctx := rig.Context(t)
					_, err = pool.Create(ctx, volume.Spec{Name: "a", Size: volume.Range{Required: 8 * rig.MiB}, Parameters: map[string]string{"blockSize": fmt.Sprint(block)}})
					rig.Must(t, err)
					device, err := pool.Activate(ctx, "a")
					rig.Must(t, err)
					t.Cleanup(func() { rig.Must(t, pool.Deactivate(ctx, "a")) })
					defer device.Close()
					path := device.Node().Name()
					direct, err := os.ReadFile("/sys/block/" + filepath.Base(path) + "/loop/dio")
					rig.Must(t, err)
					if got, want := strings.TrimSpace(string(direct)) == "1", block >= described.LogicalBlockSize; got != want {
						t.Errorf("direct I/O: %t, want %t", got, want)
					}
					rig.WriteAt(t, path, "to the medium", int64(block))
					if got := rig.ReadAt(t, path, 13, int64(block)); got != "to the medium" {
						t.Errorf("got %q", got)
					}
				})
			}
		}
	}
}
