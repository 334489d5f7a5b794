package disk_test

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The way of a volume, and what is beside it stays as it is.
func TestVolumes(t *testing.T) {
	for _, blockSize := range []uint32{512, 4096} {
		t.Run(fmt.Sprint(blockSize), func(t *testing.T) {
			pool := newPool(t, match(rig.NewDiskWithBlockSize(t, diskSize, blockSize)))
			const claimName = "pvc-01234567-89ab-cdef-0123-456789abcdef"
			create(t, pool, claimName, 5*rig.MiB)
			create(t, pool, "b", 7*rig.MiB)
			fill(t, pool, claimName, "a")
			fill(t, pool, "b", "b")
			held, err := os.OpenFile(activate(t, pool, claimName), os.O_RDWR, 0)
			rig.Must(t, err)
			defer held.Close()

			create(t, pool, "c", 1*rig.MiB)
			create(t, pool, "c", 1*rig.MiB) // Again.
			wantFilled(t, pool, "c", "\x00")
			fill(t, pool, "c", "c")
			rig.Must(t, pool.Delete(rig.Context(t), "b"))
			rig.Must(t, pool.Delete(rig.Context(t), "b"))
			waitForWipe(t, pool)
			got, err := pool.List(rig.Context(t))
			rig.Must(t, err)
			want := []volume.Info{{Name: "c", Size: rig.MiB}, {Name: claimName, Size: 5 * rig.MiB}}
			if diff := cmp.Diff(want, got, cmpopts.SortSlices(func(a, b volume.Info) bool { return a.Name < b.Name })); diff != "" {
				t.Errorf("list (-want +got):\n%s", diff)
			}
			_, err = pool.Get(rig.Context(t), "b")
			wantError(t, err, volume.ErrNotFound, "b")
			_, err = pool.Activate(rig.Context(t), "b")
			wantError(t, err, volume.ErrNotFound, "b")
			create(t, pool, "d", 7*rig.MiB) // Where b was.
			wantFilled(t, pool, "d", "\x00")
			wantFilled(t, pool, claimName, "a")
			wantFilled(t, pool, "c", "c")
		})
	}
}

func TestSameNameOtherVolume(t *testing.T) {
	pool := newPool(t, match(rig.NewDisk(t, diskSize)))
	create(t, pool, "a", 4*rig.MiB)
	for name, test := range map[string]struct {
		spec volume.Spec
		want error
		says string
	}{
		"larger":         {spec("a", 5*rig.MiB), volume.ErrIncompatible, "has 4194304 bytes"},
		"smaller":        {volume.Spec{Name: "a", Size: volume.Range{Limit: 3 * rig.MiB}}, volume.ErrIncompatible, "has 4194304 bytes"},
		"in the range":   {volume.Spec{Name: "a", Size: volume.Range{Required: 3 * rig.MiB, Limit: 4 * rig.MiB}}, nil, ""},
		"any size":       {volume.Spec{Name: "a"}, nil, ""},
		"other wipe":     {spec("a", 4*rig.MiB, "zero"), volume.ErrIncompatible, "has wipe discard, not zero"},
		"same wipe":      {spec("a", 4*rig.MiB, "discard"), nil, ""},
		"unknown wipe":   {spec("a", 4*rig.MiB, "shred"), volume.ErrInvalid, `"shred" is unknown; it is one of discard, none, secure, zero`},
		"unknown key":    {volume.Spec{Name: "x", Parameters: map[string]string{"thin": "true"}}, volume.ErrInvalid, `"thin" is unknown; a pool of disks has the parameter wipe`},
		"snapshot":       {volume.Spec{Name: "x", Source: volume.Source{Snapshot: "s"}}, volume.ErrInvalid, "no snapshots"},
		"clone":          {volume.Spec{Name: "x", Source: volume.Source{Volume: "a"}}, volume.ErrInvalid, "no snapshots"},
		"impossible":     {volume.Spec{Name: "x", Size: volume.Range{Required: 5, Limit: 6}}, volume.ErrOutOfRange, ""},
		"secure":         {spec("x", rig.MiB, "secure"), volume.ErrExhausted, "no disk of the pool on this node can erase securely"},
		"larger than it": {spec("x", roomSize+1), volume.ErrOutOfRange, fmt.Sprintf("more than the %d of the largest disk", roomSize)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := pool.Create(rig.Context(t), test.spec)
			wantError(t, err, test.want, test.says)
		})
	}
	_, err := pool.Capacity(rig.Context(t), map[string]string{"x": "y"})
	wantError(t, err, volume.ErrInvalid, `"x" is unknown`)
	wantCapacity(t, pool, volume.Capacity{}, "secure")
}

// A size that is just there is granted, to the last byte, and one more is not.
func TestExactFits(t *testing.T) {
	pool := newPool(t, match(rig.NewDisk(t, diskSize)))
	wantCapacity(t, pool, volume.Capacity{Available: roomSize, MaxVolume: roomSize, MinVolume: rig.MiB})
	create(t, pool, "a", 20*rig.MiB)
	create(t, pool, "b", 10*rig.MiB)
	create(t, pool, "c", roomSize-30*rig.MiB)
	wantCapacity(t, pool, volume.Capacity{})
	_, err := pool.Create(rig.Context(t), spec("d", rig.MiB))
	wantError(t, err, volume.ErrExhausted, "1048576 bytes in one piece")
	rig.Must(t, pool.Delete(rig.Context(t), "b"))
	waitForWipe(t, pool)
	wantCapacity(t, pool, volume.Capacity{Available: 10 * rig.MiB, MaxVolume: 10 * rig.MiB, MinVolume: rig.MiB})
	_, err = pool.Create(rig.Context(t), spec("d", 10*rig.MiB+1))
	wantError(t, err, volume.ErrExhausted, "11534336 bytes in one piece")
	create(t, pool, "d", 10*rig.MiB)
	wantFilled(t, pool, "d", "\x00")
	for _, name := range []string{"a", "b", "c", "d"} {
		rig.Must(t, pool.Delete(rig.Context(t), name))
	}
	waitForWipe(t, pool)
	create(t, pool, "all", roomSize)
}

// The last space is given once.
func TestRaceForTheLastSpace(t *testing.T) {
	pool := newPool(t, match(rig.NewDisk(t, diskSize), rig.NewDisk(t, diskSize)))
	var won, lost sync.Map
	var group sync.WaitGroup
	for i := range 12 {
		group.Add(1)
		go func() {
			defer group.Done()
			name := fmt.Sprint("v", i)
			if _, err := pool.Create(rig.Context(t), spec(name, roomSize/4/rig.MiB*rig.MiB)); err != nil {
				lost.Store(name, err)
				return
			}
			won.Store(name, true)
		}()
	}
	group.Wait()
	wins := 0
	won.Range(func(any, any) bool { wins++; return true })
	lost.Range(func(_, err any) bool { wantError(t, err.(error), volume.ErrExhausted, "in one piece"); return true })
	list, err := pool.List(rig.Context(t))
	if err != nil || wins != 8 || len(list) != 8 {
		t.Errorf("%d of 12 won, %d are there (%v), want 8", wins, len(list), err)
	}
}

// A table has 128 entries: one is the claim.
func TestNoEntryLeft(t *testing.T) {
	pool := newPool(t, match(rig.NewDisk(t, 160*rig.MiB)))
	for i := range 127 {
		create(t, pool, fmt.Sprint("v", i), rig.MiB)
	}
	wantCapacity(t, pool, volume.Capacity{})
	_, err := pool.Create(rig.Context(t), spec("more", rig.MiB))
	wantError(t, err, volume.ErrExhausted, "")
	rig.Must(t, pool.Delete(rig.Context(t), "v100"))
	waitForWipe(t, pool)
	create(t, pool, "more", rig.MiB)
	for _, name := range []string{"v0", "v126", "more"} {
		activate(t, pool, name)
	}
}

func TestExpand(t *testing.T) {
	pool := newPool(t, match(rig.NewDisk(t, diskSize)))
	create(t, pool, "a", 4*rig.MiB)
	fill(t, pool, "a", "a")
	held, err := pool.Activate(rig.Context(t), "a")
	rig.Must(t, err)
	defer held.Close()
	for _, test := range []struct {
		size volume.Range
		want uint64
	}{
		{volume.Range{Required: 4 * rig.MiB}, 4 * rig.MiB},
		{volume.Range{Required: 1}, 4 * rig.MiB},
		{volume.Range{}, 4 * rig.MiB},
		{volume.Range{Required: 5*rig.MiB + 1}, 6 * rig.MiB},
		{volume.Range{Required: 8 * rig.MiB, Limit: 8 * rig.MiB}, 8 * rig.MiB},
	} {
		got, err := pool.Expand(rig.Context(t), "a", test.size)
		if err != nil || got != test.want {
			t.Errorf("to %+v: %d (%v), want %d", test.size, got, err, test.want)
		}
		rig.Must(t, held.Resize())
		if held.Size() != test.want {
			t.Errorf("to %+v: who holds it sees %d bytes, want %d", test.size, held.Size(), test.want)
		}
	}
	if rig.ReadAt(t, held.Node().Name(), 3, 4*rig.MiB-2) != "aa\x00" {
		t.Error("the data is not as it was, or the new space is not empty")
	}
	create(t, pool, "b", 2*rig.MiB)
	fill(t, pool, "b", "b")
	for size, want := range map[volume.Range]error{
		{Required: 9 * rig.MiB}: volume.ErrExhausted, {Required: diskSize}: volume.ErrOutOfRange,
		{Limit: 7 * rig.MiB}: volume.ErrOutOfRange, {Required: 8*rig.MiB + 1, Limit: 8*rig.MiB + 2}: volume.ErrOutOfRange,
	} {
		_, err := pool.Expand(rig.Context(t), "a", size)
		wantError(t, err, want, "volume a")
	}
	_, err = pool.Expand(rig.Context(t), "nobody", size(rig.MiB))
	wantError(t, err, volume.ErrNotFound, "nobody")
	got, err := pool.Expand(rig.Context(t), "b", size(roomSize-8*rig.MiB)) // An exact fit.
	if err != nil || got != roomSize-8*rig.MiB {
		t.Errorf("got %d (%v)", got, err)
	}
	rig.Must(t, pool.Delete(rig.Context(t), "b"))
}

// Nothing that is open is deleted, be it without a claim, as loop devices hold it.
func TestDeleteWhatIsInUse(t *testing.T) {
	pool := newPool(t, match(rig.NewDisk(t, diskSize)))
	create(t, pool, "a", 4*rig.MiB)
	fill(t, pool, "a", "a")
	path := activate(t, pool, "a")
	claims := map[string]func() func(){
		"claimed": func() func() {
			device, err := blockdev.Open(path, sysfs)
			rig.Must(t, err)
			defer device.Close()
			raw, err := device.Raw(2)
			rig.Must(t, err)
			return raw.Close
		},
		"open": func() func() {
			file, err := os.Open(path)
			rig.Must(t, err)
			return func() { file.Close() }
		},
		"shown by a loop device": func() func() {
			device, err := blockdev.Open(path, sysfs)
			rig.Must(t, err)
			defer device.Close()
			view, err := device.View("test")
			rig.Must(t, err)
			view.Close()
			return func() { rig.Must(t, sysfs.ReleaseLoop(view.LoopID())) }
		},
	}
	for name, claim := range claims {
		t.Run(name, func(t *testing.T) {
			release := claim()
			defer release()
			wantError(t, pool.Delete(rig.Context(t), "a"), volume.ErrInUse, "a")
			wantFilled(t, pool, "a", "a")
		})
	}
	rig.Must(t, pool.Delete(rig.Context(t), "a"))
}

func TestWholeDisks(t *testing.T) {
	small, middle, large := rig.NewDisk(t, diskSize), rig.NewDisk(t, 2*diskSize), rig.NewDisk(t, 3*diskSize)
	options := match(large, middle, small)
	options.Layout = disk.LayoutWhole
	pool := newPool(t, options)
	const smallRoom, middleRoom, largeRoom = diskSize - 3*rig.MiB, 2*diskSize - 3*rig.MiB, 3*diskSize - 3*rig.MiB
	wantCapacity(t, pool, volume.Capacity{Available: smallRoom + middleRoom + largeRoom, MaxVolume: largeRoom, MinVolume: smallRoom})
	wholeDisk := func(name string, size volume.Range, want uint64) {
		t.Helper()
		info, err := pool.Create(rig.Context(t), volume.Spec{Name: name, Size: size})
		if err != nil || info.Size != want {
			t.Fatalf("%s: %+v (%v), want %d bytes", name, info, err, want)
		}
	}
	wholeDisk("middle", size(smallRoom+1), middleRoom)
	wholeDisk("small", size(1), smallRoom)
	wantCapacity(t, pool, volume.Capacity{Available: largeRoom, MaxVolume: largeRoom, MinVolume: largeRoom})
	_, err := pool.Create(rig.Context(t), volume.Spec{Name: "x", Size: volume.Range{Required: 1, Limit: middleRoom}})
	wantError(t, err, volume.ErrExhausted, "a whole disk")
	_, err = pool.Create(rig.Context(t), volume.Spec{Name: "x", Size: volume.Range{Required: smallRoom + 1, Limit: middleRoom - 1}})
	wantError(t, err, volume.ErrOutOfRange, "no disk")
	_, err = pool.Create(rig.Context(t), spec("x", largeRoom+1))
	wantError(t, err, volume.ErrOutOfRange, "no disk")
	_, err = pool.Expand(rig.Context(t), "small", size(smallRoom+1))
	wantError(t, err, volume.ErrOutOfRange, "")
	wholeDisk("large", volume.Range{}, largeRoom)
	fill(t, pool, "small", "x")
	rig.Must(t, pool.Delete(rig.Context(t), "small"))
	waitForWipe(t, pool)
	wholeDisk("again", size(smallRoom), smallRoom)
	wantFilled(t, pool, "again", "\x00")
}
