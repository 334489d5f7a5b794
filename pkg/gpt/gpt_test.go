package gpt_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

const size = 8 * rig.MiB

var (
	linuxType = must(gpt.ParseGUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4"))
	blocks    = []uint64{512, 4096}
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// memory is a disk in memory. What fails is injected: the write after cut more,
// of which torn bytes reach the disk, and each read of the block at bad.
type memory struct {
	data      []byte
	cut, torn int
	bad       int64
}

var (
	errCut = errors.New("power failure")
	errBad = errors.New("unreadable block")
)

func newMemory() *memory { return &memory{data: make([]byte, size), cut: -1, bad: -1} }

func (m *memory) ReadAt(data []byte, offset int64) (int, error) {
	if m.bad >= offset && m.bad < offset+int64(len(data)) {
		return 0, errBad
	}
	return bytes.NewReader(m.data).ReadAt(data, offset)
}

func (m *memory) WriteAt(data []byte, offset int64) (int, error) {
	if m.cut == 0 {
		return copy(m.data[offset:], data[:min(m.torn, len(data))]), errCut
	}
	m.cut--
	return copy(m.data[offset:], data), nil
}

func (m *memory) Sync() error { return nil }

func newTable(blockSize uint64) gpt.Table {
	table := must(gpt.New(gpt.HashGUID("disk"), size, blockSize))
	table.Entries[0] = gpt.Entry{Type: linuxType, ID: gpt.HashGUID("a"), Start: rig.MiB, Size: rig.MiB, Name: "rawblock:fast"}
	table.Entries[6] = gpt.Entry{
		Type: linuxType, ID: gpt.HashGUID("b"), Start: 2 * rig.MiB, Size: 3 * rig.MiB,
		Attributes: 1<<63 | 5<<48, Name: "pvc-äöü-𝄞 " + strings.Repeat("x", 25),
	}
	return table
}

func formatted(t *testing.T, table gpt.Table) *memory {
	t.Helper()
	disk := newMemory()
	rig.Must(t, gpt.Format(disk, &table))
	return disk
}

func read(t *testing.T, disk *memory, blockSize uint64) gpt.Found {
	t.Helper()
	found, err := gpt.Read(disk, size, blockSize)
	rig.Must(t, err)
	return found
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, blockSize := range blocks {
		table := newTable(blockSize)
		found := read(t, formatted(t, table), blockSize)
		if diff := cmp.Diff(table, found.Table); diff != "" || found.Primary != nil || found.Backup != nil {
			t.Errorf("blocks of %d: primary %v, backup %v, table (-want +got):\n%s", blockSize, found.Primary, found.Backup, diff)
		}
	}
}

func TestNoTable(t *testing.T) {
	for name, change := range map[string]func([]byte){
		"zeros":            func([]byte) {},
		"other data":       func(data []byte) { copy(data, bytes.Repeat([]byte("x"), size)) },
		"MBR only":         func(data []byte) { data[510], data[511] = 0x55, 0xaa },
		"other block size": func(data []byte) { copy(data[8192:], "EFI PART") },
	} {
		t.Run(name, func(t *testing.T) {
			disk := newMemory()
			change(disk.data)
			if _, err := gpt.Read(disk, size, 512); !errors.Is(err, gpt.ErrNone) {
				t.Errorf("got %v, want %v", err, gpt.ErrNone)
			}
		})
	}
}

// Each byte of either copy that is damaged is noticed, or means nothing; the other
// copy is used, and the damaged one is as before after the repair.
func TestDamageOfOneCopy(t *testing.T) {
	for _, blockSize := range blocks {
		table, region := newTable(blockSize), int(2*blockSize+128*128)
		disk := formatted(t, table)
		head, tail := bytes.Clone(disk.data[:64<<10]), bytes.Clone(disk.data[size-64<<10:])
		for _, part := range []struct {
			name     string
			from, to int
		}{{"primary", 0, region}, {"backup", size - region + int(blockSize), size}} {
			noticed := 0
			for at := part.from; at < part.to; at += 31 {
				disk.data[at] ^= 0x10
				found := read(t, disk, blockSize)
				if found.Table != table {
					t.Fatalf("%s damaged at %d: another table", part.name, at)
				}
				if found.Primary == nil && found.Backup == nil {
					disk.data[at] ^= 0x10
					continue
				}
				noticed++
				rig.Must(t, found.Repair(disk))
				if !bytes.Equal(disk.data[:64<<10], head) || !bytes.Equal(disk.data[size-64<<10:], tail) {
					t.Fatalf("%s damaged at %d: not as before", part.name, at)
				}
			}
			if noticed < 128*128/31 {
				t.Errorf("blocks of %d: %s: only %d damages were noticed", blockSize, part.name, noticed)
			}
		}
	}
}

func TestUnreadableBlock(t *testing.T) {
	table := newTable(512)
	for _, bad := range []int64{0, 512, 1024, size - 1, size - 512*33} {
		disk := formatted(t, table)
		disk.bad = bad
		found := read(t, disk, 512)
		if found.Table != table || !errors.Is(errors.Join(found.Primary, found.Backup), errBad) {
			t.Errorf("at %d: primary %v, backup %v", bad, found.Primary, found.Backup)
		}
	}
}

func TestDamageOfBothCopies(t *testing.T) {
	for name, change := range map[string]func(*memory){
		"bits":                 func(m *memory) { m.data[1024+3]++; m.data[size-512*20]++ },
		"one copy gone":        func(m *memory) { clear(m.data[:17<<10]); m.data[size-512*20]++ },
		"primary of less size": func(m *memory) { m.data[512+24]++; clear(m.data[size-512:]) },
		"copies of two disks": func(m *memory) {
			other := newTable(512)
			other.Disk = gpt.HashGUID("another")
			disk := newMemory()
			rig.Must(t, gpt.Format(disk, &other))
			copy(m.data[size/2:], disk.data[size/2:])
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := formatted(t, newTable(512))
			change(disk)
			if _, err := gpt.Read(disk, size, 512); !errors.Is(err, gpt.ErrDamaged) {
				t.Errorf("got %v, want %v", err, gpt.ErrDamaged)
			}
		})
	}
}

// What cannot be read is neither free nor damaged: it may be whole when it can be
// read again. A disk that has gone reads as one that ends at its beginning.
func TestUnread(t *testing.T) {
	for name, change := range map[string]func(*memory){
		"no primary, backup cannot be read":      func(m *memory) { clear(m.data[:17<<10]); m.bad = size - 1 },
		"primary cannot be read, no backup":      func(m *memory) { m.bad = 512; clear(m.data[size-512:]) },
		"primary cannot be read, backup damaged": func(m *memory) { m.bad = 1024; m.data[size-512*20]++ },
		"no primary, disk shorter than it says":  func(m *memory) { clear(m.data[:17<<10]); m.data = m.data[:size-512] },
		"gone":                                   func(m *memory) { m.data = nil },
	} {
		t.Run(name, func(t *testing.T) {
			disk := formatted(t, newTable(512))
			change(disk)
			if _, err := gpt.Read(disk, size, 512); !errors.Is(err, gpt.ErrUnread) || errors.Is(err, gpt.ErrDamaged) {
				t.Errorf("got %v, want %v", err, gpt.ErrUnread)
			}
		})
	}
}

// Whichever write is cut off, and wherever: afterwards the disk has the old table
// or the new one, and the next change completes.
func TestPowerFailure(t *testing.T) {
	old := newTable(512)
	next := old
	next.Entries[6], next.Entries[7] = gpt.Entry{}, gpt.Entry{Type: linuxType, ID: gpt.HashGUID("c"), Start: 6 * rig.MiB, Size: rig.MiB}
	next.Entries[1] = gpt.Entry{Type: linuxType, ID: gpt.HashGUID("d"), Start: 5 * rig.MiB, Size: rig.MiB}
	outcomes := map[string]int{}
	for cut := range 3 {
		for torn := 0; torn <= 17<<10; torn += 512 {
			disk := formatted(t, old)
			disk.cut, disk.torn = cut, torn
			if err := gpt.Replace(disk, size, &old, &next); (err == nil) != (cut == 2) || cut < 2 && !errors.Is(err, errCut) {
				t.Fatalf("write %d cut off after %d bytes: %v", cut, torn, err)
			}
			disk.cut = -1
			found := read(t, disk, 512)
			if found.Table != old && found.Table != next {
				t.Fatalf("write %d cut off after %d bytes: neither the old nor the new table", cut, torn)
			}
			outcomes[fmt.Sprint(found.Table == next, found.Primary, found.Backup)]++
			rig.Must(t, gpt.Replace(disk, size, &found.Table, &next))
			if found := read(t, disk, 512); found.Table != next || found.Primary != nil || found.Backup != nil {
				t.Fatalf("write %d cut off after %d bytes: the next change does not mend it", cut, torn)
			}
		}
	}
	if len(outcomes) < 5 {
		t.Errorf("not all outcomes were met: %v", outcomes)
	}
}

// The first table of a disk is there with its first copy.
func TestPowerFailureOfFormat(t *testing.T) {
	table := newTable(512)
	for cut := range 2 {
		disk := newMemory()
		disk.cut = cut
		if err := gpt.Format(disk, &table); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		found, err := gpt.Read(disk, size, 512)
		if cut == 0 && !errors.Is(err, gpt.ErrNone) || cut == 1 && found.Table != table {
			t.Errorf("write %d cut off: %v, %v", cut, found.Table.Disk, err)
		}
	}
}

func TestRepairCutOff(t *testing.T) {
	table := newTable(512)
	for _, damaged := range []int{1024, size - 1024} {
		for torn := 0; torn <= 17<<10; torn += 512 {
			disk := formatted(t, table)
			disk.data[damaged]++
			disk.cut, disk.torn = 0, torn
			found := read(t, disk, 512)
			if err := found.Repair(disk); !errors.Is(err, errCut) {
				t.Fatalf("got %v, want %v", err, errCut)
			}
			if found := read(t, disk, 512); found.Table != table {
				t.Fatalf("repair cut off after %d bytes: another table", torn)
			}
		}
	}
}

// A disk that forgets what it was told to keep is noticed.
func TestWritesThatAreLost(t *testing.T) {
	table := newTable(512)
	for kept := range 2 {
		disk := &forgetful{newMemory(), kept}
		if err := gpt.Format(disk, &table); err == nil {
			t.Errorf("after %d writes: no error", kept)
		}
	}
}

type forgetful struct {
	*memory
	kept int
}

func (f *forgetful) WriteAt(data []byte, offset int64) (int, error) {
	if f.kept--; f.kept < 0 {
		return len(data), nil
	}
	return f.memory.WriteAt(data, offset)
}

func TestChangedByAnotherProgram(t *testing.T) {
	ours, others := newTable(512), newTable(512)
	others.Entries[6].Name = "renamed"
	disk := formatted(t, others)
	before := bytes.Clone(disk.data)
	if err := gpt.Replace(disk, size, &ours, &ours); !errors.Is(err, gpt.ErrChanged) || !bytes.Equal(disk.data, before) {
		t.Errorf("got %v, want %v and nothing written", err, gpt.ErrChanged)
	}
}

// The table of a disk that has grown is that of its former size, and stays where it is.
func TestDiskThatHasGrown(t *testing.T) {
	table := newTable(512)
	disk := formatted(t, table)
	disk.data = append(disk.data, make([]byte, rig.MiB)...)
	found, err := gpt.Read(disk, size+rig.MiB, 512)
	if err != nil || found.Table != table || found.Primary != nil || found.Backup != nil {
		t.Fatalf("got %v, %v, %v", found.Primary, found.Backup, err)
	}
	next := table
	next.Entries[6] = gpt.Entry{}
	rig.Must(t, gpt.Replace(disk, size+rig.MiB, &table, &next))
	// One that has shrunk has lost the backup, and who knows what else.
	if found, err := gpt.Read(disk, size-rig.MiB, 512); err == nil {
		t.Errorf("a disk that has shrunk: %v", found.Table.Disk)
	}
}

func TestCheck(t *testing.T) {
	start, end := uint64(17<<10), uint64(size-(33*512))
	for name, test := range map[string]struct {
		entries []gpt.Entry
		says    string
	}{
		"none":               {nil, ""},
		"all usable space":   {[]gpt.Entry{{Start: start, Size: end - start}}, ""},
		"side by side":       {[]gpt.Entry{{Start: 2 * rig.MiB, Size: rig.MiB}, {Start: rig.MiB, Size: rig.MiB}}, ""},
		"over another":       {[]gpt.Entry{{Start: 2*rig.MiB - 512, Size: rig.MiB}, {Start: rig.MiB, Size: rig.MiB}}, "partition 1 begins at 2096640, over another"},
		"same place":         {[]gpt.Entry{{Start: rig.MiB, Size: 512}, {Start: rig.MiB, Size: 512}}, "over another"},
		"in the table":       {[]gpt.Entry{{Start: start - 512, Size: rig.MiB}}, "before the usable space: the first free byte is 17408"},
		"in the backup":      {[]gpt.Entry{{Start: rig.MiB, Size: end - rig.MiB + 512}}, "ends behind the usable space"},
		"behind the end":     {[]gpt.Entry{{Start: size + rig.MiB, Size: 512}}, "ends behind the usable space"},
		"endless":            {[]gpt.Entry{{Start: rig.MiB, Size: 1<<64 - 512}}, "ends behind the usable space"},
		"empty":              {[]gpt.Entry{{Start: rig.MiB}}, "is not one or more blocks of 512 bytes"},
		"half a block":       {[]gpt.Entry{{Start: rig.MiB, Size: 256}}, "is not one or more blocks"},
		"unaligned":          {[]gpt.Entry{{Start: rig.MiB + 1, Size: 512}}, "is not one or more blocks"},
		"longest name":       {[]gpt.Entry{{Start: rig.MiB, Size: 512, Name: strings.Repeat("n", 36)}}, ""},
		"name is too long":   {[]gpt.Entry{{Start: rig.MiB, Size: 512, Name: strings.Repeat("n", 37)}}, "cannot be the name of a partition"},
		"name with a NUL":    {[]gpt.Entry{{Start: rig.MiB, Size: 512, Name: "a\x00b"}}, "cannot be the name"},
		"same ID":            {[]gpt.Entry{{Start: rig.MiB, Size: 512, ID: linuxType}, {Start: 2 * rig.MiB, Size: 512, ID: linuxType}}, "partitions 1 and 2 have the same ID"},
		"unused are ignored": {[]gpt.Entry{{Start: rig.MiB, Size: 512}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			table := must(gpt.New(gpt.NewGUID(), size, 512))
			for i, entry := range test.entries {
				entry.Type = linuxType
				if entry.ID == (gpt.GUID{}) {
					entry.ID = gpt.NewGUID()
				}
				table.Entries[i] = entry
			}
			err := table.Check()
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
			if err := gpt.Format(newMemory(), &table); (err == nil) != (test.says == "") {
				t.Errorf("format: %v", err)
			}
		})
	}
}

func TestNew(t *testing.T) {
	for _, test := range []struct {
		size, block uint64
		ok          bool
	}{
		{size, 512, true},
		{size, 4096, true},
		{size, 256, false},
		{size, 0, false},
		{size, 520, false},
		{size, 32768, false},
		{68 * 512, 512, true},
		{67 * 512, 512, false},
		{0, 512, false},
		{12 * 4096, 4096, true},
		{11 * 4096, 4096, false},
	} {
		table, err := gpt.New(gpt.NewGUID(), test.size, test.block)
		if (err == nil) != test.ok {
			t.Errorf("%d bytes in blocks of %d: %v, want ok %t", test.size, test.block, err, test.ok)
		}
		if start, end := table.Usable(); err == nil && start >= end {
			t.Errorf("%d bytes in blocks of %d: usable from %d to %d", test.size, test.block, start, end)
		}
	}
}

func TestToolsOfOthersAgree(t *testing.T) {
	for _, blockSize := range blocks {
		checkWithTools(t, blockSize)
	}
}
