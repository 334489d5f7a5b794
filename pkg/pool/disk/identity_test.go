package disk_test

import (
	"os"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A disk that vanishes and returns under another name is the same disk.
func TestDiskThatReturnsUnderAnotherName(t *testing.T) {
	d, dir := rig.NewDisk(t, diskSize), t.TempDir()
	link := dir + "/by-id"
	rig.Must(t, os.Symlink(d.Path, link))
	var options disk.Options
	options.Match.Paths = []string{link}
	pool := newPool(t, options)
	create(t, pool, "a", 4*rig.MiB)
	fill(t, pool, "a", "a")

	pool.LetGo()
	forgetPartitions(t, d.Path)
	d.Pull(t)
	rig.Must(t, os.Remove(link))
	_, err := pool.Activate(rig.Context(t), "a")
	wantError(t, err, volume.ErrNotFound, "a")
	if list, err := pool.List(rig.Context(t)); err != nil || len(list) > 0 {
		t.Errorf("it is still listed: %v (%v)", list, err)
	}
	rig.Must(t, pool.Delete(rig.Context(t), "a"))

	place := rig.NewDisk(t, diskSize) // It takes the number.
	d.Plug(t, 512)
	if place.Path == d.Path {
		t.Fatal("the disk has come back under the same name")
	}
	rig.Must(t, os.Symlink(d.Path, link))
	wantFilled(t, pool, "a", "a")
	if len(pool.Status().Disks) != 1 {
		t.Errorf("disks: %+v", pool.Status())
	}
}

// Another disk in the place of ours is never handed out, nor written to.
func TestSwappedDisk(t *testing.T) {
	ours, others := rig.NewDisk(t, diskSize), rig.NewDisk(t, diskSize)
	rig.WriteAt(t, others.Path, "others", rig.MiB)
	pool := newPool(t, match(ours))
	create(t, pool, "a", 4*rig.MiB)
	pool.LetGo()
	forgetPartitions(t, ours.Path)
	others.TakePlaceOf(t, ours)
	_, err := pool.Activate(rig.Context(t), "a")
	wantError(t, err, volume.ErrNotFound, "a")
	wantRefused(t, pool, others, "occupied", "it has data")
	_, err = pool.Create(rig.Context(t), spec("b", rig.MiB))
	wantError(t, err, volume.ErrExhausted, "")
	wantZero(t, others, 0, rig.MiB)
}

// A copy of a disk, bit by bit: nobody can tell which one is meant.
func TestCopyOfADisk(t *testing.T) {
	first, second := rig.NewDisk(t, diskSize), rig.NewDisk(t, diskSize)
	pool := newPool(t, match(first))
	create(t, pool, "a", 4*rig.MiB)
	closePool(t, pool, match(first))
	data, err := os.ReadFile(first.Backing)
	rig.Must(t, err)
	rig.WriteAt(t, second.Path, string(data), 0)
	both := openPool(t, "fast", match(first, second))
	for _, d := range []*rig.Disk{first, second} {
		wantRefused(t, both, d, "twin", first.Path)
		wantRefused(t, both, d, "twin", second.Path)
	}
	_, err = both.Activate(rig.Context(t), "a")
	wantError(t, err, volume.ErrNotFound, "")
	both.Close()
	activate(t, openPool(t, "fast", match(second)), "a") // Alone it is used.
}

// The kernel's partitions are made those of the table where they are not.
func TestPartitionsOfTheKernelAreMended(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	options := match(d)
	pool := newPool(t, options)
	create(t, pool, "a", 4*rig.MiB)
	fill(t, pool, "a", "a")
	device, err := blockdev.Open(d.Path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	for name, change := range map[string]func(){
		"gone":      func() {},
		"smaller":   func() { rig.Must(t, device.AddPartition(2, 2*rig.MiB, rig.MiB)) },
		"larger":    func() { rig.Must(t, device.AddPartition(2, 2*rig.MiB, 8*rig.MiB)) },
		"elsewhere": func() { rig.Must(t, device.AddPartition(2, 8*rig.MiB, 4*rig.MiB)) },
		"of nobody": func() { rig.Must(t, device.AddPartition(9, 2*rig.MiB, 8*rig.MiB)) },
	} {
		t.Run(name, func(t *testing.T) {
			rig.Eventually(t, func() error { return device.DeletePartition(2) })
			change()
			wantFilled(t, pool, "a", "a")
		})
	}
	t.Run("elsewhere and in use", func(t *testing.T) {
		rig.Eventually(t, func() error { return device.DeletePartition(2) })
		rig.Must(t, device.AddPartition(2, 8*rig.MiB, 4*rig.MiB))
		held, err := os.Open(d.PartitionPath(2))
		rig.Must(t, err)
		defer held.Close()
		_, err = pool.Activate(rig.Context(t), "a")
		wantError(t, err, volume.ErrInUse, "partition 2 of "+d.Path)
	})
}

// Another program has changed the table: nothing is written over it.
func TestTableChangedByAnotherProgram(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	pool := newPool(t, match(d))
	create(t, pool, "a", 4*rig.MiB)
	run(t, "sgdisk", "-n", "9:18M:23M", d.Path)
	_, err := pool.Create(rig.Context(t), spec("b", 15*rig.MiB))
	wantError(t, err, gpt.ErrChanged, "change the partition table of "+d.Path)
	create(t, pool, "b", 15*rig.MiB) // What the other has taken is not given.
	if found := readTable(t, d); found.Table.Entries[8].Start != 18*rig.MiB || found.Table.Entries[2].Start < 24*rig.MiB {
		t.Errorf("entries %+v", found.Table.Entries[:9])
	}
}
