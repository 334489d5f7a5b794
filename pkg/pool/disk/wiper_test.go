package disk_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A disk that is free at its ends may have data of a former owner between them.
func TestAdoptedDiskIsWiped(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	rig.WriteAt(t, d.Path, strings.Repeat("x", 4096), 16*rig.MiB+4096) // No sample is taken there.
	pool := newPool(t, match(d))
	wantZero(t, d, 2*rig.MiB, diskSize-rig.MiB)
	wantCapacity(t, pool, volume.Capacity{Available: roomSize, MaxVolume: roomSize, MinVolume: rig.MiB})
}

// A disk that cannot erase securely can still be one of a pool that does so where
// it can: its volumes have another wipe.
func TestAdoptedDiskThatCannotEraseSecurely(t *testing.T) {
	options := match(rig.NewDisk(t, diskSize))
	options.Wipe = "secure"
	pool := newPool(t, options)
	_, err := pool.Create(rig.Context(t), spec("a", rig.MiB))
	wantError(t, err, volume.ErrExhausted, "can erase securely")
	create(t, pool, "a", rig.MiB, "discard")
}

// What one tenant wrote does not reach the next: it is read back from what the disk
// is made of.
func TestDeletedVolumeIsWiped(t *testing.T) {
	for name, test := range map[string]struct {
		wipe      string
		noDiscard bool
	}{
		"discard": {"discard", false}, "zero": {"zero", false}, "disk cannot discard": {"discard", true},
	} {
		t.Run(name, func(t *testing.T) {
			d := rig.NewDisk(t, diskSize)
			if test.noDiscard {
				rig.Must(t, os.WriteFile("/sys/block/"+filepath.Base(d.Path)+"/queue/discard_max_bytes", []byte("0"), 0))
			}
			pool := newPool(t, match(d).WithStep(64*rig.MiB))
			create(t, pool, "before", 3*rig.MiB, test.wipe)
			create(t, pool, "a", 9*rig.MiB, test.wipe)
			create(t, pool, "behind", 3*rig.MiB, test.wipe)
			for _, name := range []string{"before", "a", "behind"} {
				fill(t, pool, name, "x")
			}
			rig.Must(t, pool.Delete(rig.Context(t), "a"))
			waitForWipe(t, pool)
			wantZero(t, d, 5*rig.MiB, 14*rig.MiB)
			wantFilled(t, pool, "before", "x")
			wantFilled(t, pool, "behind", "x")
			create(t, pool, "b", 9*rig.MiB)
			wantFilled(t, pool, "b", "\x00")
		})
	}
}

// The plugin ended, or was killed, after the volume was deleted and before it was
// wiped: after the next start its space is not offered before it is.
func TestWipingIsResumed(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	options := match(d)
	pool := newPool(t, options)
	create(t, pool, "a", roomSize)
	fill(t, pool, "a", "x")
	closePool(t, pool, options)
	writeTable(t, d, func(table *gpt.Table) {
		entry := &table.Entries[1]
		entry.Type, entry.ID = disk.WipingType, gpt.NewGUID()
	})
	again := openPool(t, "fast", options)
	// A volume of this name may exist again at once, if there is space.
	if _, err := again.Create(rig.Context(t), spec("a", roomSize)); err != nil {
		wantError(t, err, volume.ErrExhausted, "are still being wiped")
	}
	waitForWipe(t, again)
	wantZero(t, d, 2*rig.MiB, diskSize-rig.MiB)
	create(t, again, "a", roomSize)
}

// What cannot be wiped is not offered, and the state says why.
func TestSpaceThatCannotBeWiped(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	options := match(d)
	pool := newPool(t, options)
	create(t, pool, "a", 10*rig.MiB)
	fill(t, pool, "a", "x")
	closePool(t, pool, options)
	const secure = 3 << 48
	writeTable(t, d, func(table *gpt.Table) {
		entry := &table.Entries[1]
		entry.Type, entry.ID, entry.Attributes = disk.WipingType, gpt.NewGUID(), secure
	})
	again := openPool(t, "fast", options)
	rig.Eventually(t, func() error {
		wiping := again.Status().Disks[0].Wiping
		if len(wiping) == 1 && wiping[0].Err != nil && strings.Contains(wiping[0].Err.Error(), "BLKSECDISCARD") {
			return nil
		}
		return errNotYet
	})
	create(t, again, "b", roomSize-10*rig.MiB) // The rest is there.
	wantCapacity(t, again, volume.Capacity{})
	_, err := again.Create(rig.Context(t), spec("c", rig.MiB))
	wantError(t, err, volume.ErrExhausted, "10485760 bytes are still being wiped")
}

// Space is offered in steps, and what is done stays done.
func TestWipingInSteps(t *testing.T) {
	d := rig.NewDisk(t, 200*rig.MiB)
	pool := newPool(t, match(d).WithStep(64*rig.MiB))
	create(t, pool, "a", 197*rig.MiB)
	fill(t, pool, "a", "x")
	rig.Must(t, pool.Delete(rig.Context(t), "a"))
	seen := map[int]bool{}
	rig.Eventually(t, func() error {
		status := pool.Status().Disks[0]
		seen[int(status.Free/rig.MiB)] = true
		if len(status.Wiping) > 0 {
			return errNotYet
		}
		return nil
	})
	for free := range seen {
		if free != 0 && free != 64 && free != 128 && free != 192 && free != 197 {
			t.Errorf("%d MiB were free in between", free)
		}
	}
	wantZero(t, d, 2*rig.MiB, 199*rig.MiB)
}

// Somebody opens what is being wiped, and holds it: what he writes is not offered.
func TestWipingSpaceThatIsHeld(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	options := match(d)
	pool := newPool(t, options)
	create(t, pool, "a", 10*rig.MiB)
	closePool(t, pool, options)
	writeTable(t, d, func(table *gpt.Table) {
		entry := &table.Entries[1]
		entry.Type, entry.ID = disk.WipingType, gpt.NewGUID()
	})
	device, err := blockdev.Open(d.Path, sysfs)
	rig.Must(t, err)
	rig.Must(t, device.AddPartition(2, 2*rig.MiB, 10*rig.MiB))
	device.Close()
	held, err := os.OpenFile(d.PartitionPath(2), os.O_RDWR, 0)
	rig.Must(t, err)
	defer held.Close()
	again := openPool(t, "fast", options)
	rig.Eventually(t, func() error {
		if wiping := again.Status().Disks[0].Wiping; len(wiping) == 1 && wiping[0].Err != nil {
			wantError(t, wiping[0].Err, volume.ErrInUse, "delete partition 2")
			return nil
		}
		return errNotYet
	})
	wantCapacity(t, again, volume.Capacity{Available: roomSize - 10*rig.MiB, MaxVolume: roomSize - 10*rig.MiB, MinVolume: rig.MiB})
}

// Without a wipe, the space is at once that of others without a wipe, and that of
// no one else before it is wiped.
func TestUnwipedSpace(t *testing.T) {
	d := rig.NewDisk(t, diskSize)
	pool := newPool(t, match(d))
	create(t, pool, "a", 10*rig.MiB, "none")
	create(t, pool, "rest", roomSize-10*rig.MiB)
	fill(t, pool, "a", "x")
	rig.Must(t, pool.Delete(rig.Context(t), "a"))
	ten := volume.Capacity{Available: 10 * rig.MiB, MaxVolume: 10 * rig.MiB, MinVolume: rig.MiB}
	wantCapacity(t, pool, ten, "none")
	create(t, pool, "b", 4*rig.MiB, "none")
	wantFilled(t, pool, "b", "x") // It is what it says.
	wantCapacity(t, pool, volume.Capacity{Available: 6 * rig.MiB, MaxVolume: 6 * rig.MiB, MinVolume: rig.MiB}, "none")
	_, err := pool.Expand(rig.Context(t), "b", size(5*rig.MiB))
	wantError(t, err, volume.ErrExhausted, "unwiped")
	rig.Must(t, pool.Delete(rig.Context(t), "b"))
	create(t, pool, "c", 10*rig.MiB, "none") // Two spaces side by side.
	rig.Must(t, pool.Delete(rig.Context(t), "c"))
	_, err = pool.Create(rig.Context(t), spec("d", 10*rig.MiB))
	wantError(t, err, volume.ErrExhausted, "wipe none")
	waitForWipe(t, pool)
	wantZero(t, d, 2*rig.MiB, 12*rig.MiB)
	wantCapacity(t, pool, ten)
	create(t, pool, "d", 10*rig.MiB)
	wantFilled(t, pool, "d", "\x00")
}
