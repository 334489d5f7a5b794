package lvm

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestRecordsInTags(t *testing.T) {
	created := time.Date(2026, 11, 24, 12, 0, 1, 0, time.UTC)
	for _, test := range []struct {
		record record
		tags   []string
	}{
		{record{kind: volumeKind, name: "pvc-1", wipe: wipeDiscard}, []string{"rawblock.volume=pool/pvc-1", "rawblock.wipe=discard"}},
		{
			record{kind: volumeKind, name: "a_b.c", making: true, source: volume.Source{Snapshot: "s"}, encryption: volume.LUKS2},
			[]string{"rawblock.volume=pool/a_b.c", "rawblock.state=making", "rawblock.source=snapshot/s", "rawblock.encryption=luks2"},
		},
		{record{kind: volumeKind, name: "a", source: volume.Source{Volume: "b"}}, []string{"rawblock.volume=pool/a", "rawblock.source=volume/b"}},
		{
			record{kind: snapshotKind, name: "s", of: "a", created: created},
			[]string{"rawblock.snapshot=pool/s", "rawblock.of=a", "rawblock.created=2026-11-24T12:00:01Z"},
		},
		{record{kind: spaceKind, wipe: wipeSecure, wiped: 1 << 34}, []string{"rawblock.space=pool", "rawblock.wipe=secure", "rawblock.wiped=17179869184"}},
	} {
		if diff := cmp.Diff(test.tags, test.record.tags("pool")); diff != "" {
			t.Errorf("tags of %+v (-want +got):\n%s", test.record, diff)
		}
		// LVM sorts them, and others may have added theirs.
		tags := slices.Concat(test.tags, []string{"theirs", "rawblock.volume=other/x"})
		slices.Sort(tags)
		got, ours, err := readRecord("pool", tags)
		if err != nil || !ours || got != test.record {
			t.Errorf("%v: got %+v, %t, %v", tags, got, ours, err)
		}
	}
}

func TestTagsOfOthers(t *testing.T) {
	for _, tags := range [][]string{
		nil, {"theirs"}, {"rawblock.volume=other/a"}, {"rawblock.volume=pool2/a", "rawblock.colour=red"}, {"rawblock.wipe=zero"}, {"volume=pool/a"}, {"rawblock.volume"},
	} {
		if got, ours, err := readRecord("pool", tags); ours || err != nil {
			t.Errorf("%v: %+v, %t, %v", tags, got, ours, err)
		}
	}
}

// What is ours and cannot be understood is an error, and still known by its name.
func TestTagsThatAreNotUnderstood(t *testing.T) {
	for _, tag := range []string{
		"rawblock.colour=red", "rawblock.state=done", "rawblock.source=disk/a", "rawblock.source=volume/", "rawblock.created=today", "rawblock.wipe=shred",
		"rawblock.wiped=-1", "rawblock.encryption=rot13", "rawblock.volume=pool/b", "rawblock.snapshot=pool/a",
	} {
		got, ours, err := readRecord("pool", []string{"rawblock.volume=pool/a", tag})
		if err == nil || !ours || got.name != "a" || got.kind != volumeKind {
			t.Errorf("%s: %+v, %t, %v", tag, got, ours, err)
		}
	}
}

// LVM takes each label as a name, and the kernel what it makes of that.
func TestLabels(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range []string{
		"a", "pvc-0a1b2c3d-1111-2222-3333-444455556666", "a_tdata", "a.tdata", "snapshot", strings.Repeat("n", 64), strings.Repeat("n-", 32), strings.Repeat("_", 36),
	} {
		for _, kind := range []kind{volumeKind, snapshotKind, spaceKind} {
			for _, group := range []string{"vg0", strings.Repeat("-", 32)} {
				got := label(group, "pool", kind, name)
				if len(mappingName(group, got)) > maxMapping || strings.Contains(got, "_") || lvm.CheckName(got) != nil {
					t.Errorf("%s %s of %s is called %q", kind, name, group, got)
				}
				if group == "vg0" && seen[got] {
					t.Errorf("two are called %q", got)
				}
				seen[got] = true
			}
		}
	}
	if a, b := label("vg0", "a", volumeKind, "x"), label("vg0", "b", volumeKind, "x"); a == b {
		t.Errorf("volumes of two pools are both called %q", a)
	}
	if got, want := label("vg0", "pool", volumeKind, "pvc-1"), "rawblock.pvc-1."; !strings.HasPrefix(got, want) {
		t.Errorf("volume pvc-1 is called %q", got)
	}
	if got, want := mappingName("vg-0", "a-b"), "vg--0-a--b"; got != want {
		t.Errorf("the mapping is %q, want %q", got, want)
	}
}

func TestThinRoom(t *testing.T) {
	const mib = 1 << 20
	group := func(pool lvm.ThinPool, sizes ...uint64) (*group, lvm.Volume) {
		pool.ChunkSize = 3 * mib / 2
		g := &group{Group: lvm.Group{Name: "vg0", ExtentSize: mib}}
		thin := lvm.Volume{Name: "tp", Size: 100 * mib, Thin: &pool}
		for _, size := range sizes {
			g.Volumes = append(g.Volumes, lvm.Volume{Pool: "tp", Size: size})
		}
		g.Volumes = append(g.Volumes, lvm.Volume{Pool: "another", Size: 50 * mib}, thin)
		return g, thin
	}
	for name, test := range map[string]struct {
		pool       lvm.ThinPool
		overcommit float64
		promised   []uint64
		left       uint64
	}{
		"empty":                        {lvm.ThinPool{}, 1, nil, 99 * mib}, // 66 chunks.
		"whole chunks are promised":    {lvm.ThinPool{}, 1, []uint64{mib, mib}, 96 * mib},
		"more than there is":           {lvm.ThinPool{}, 2, []uint64{90 * mib}, 109 * mib},
		"nothing left":                 {lvm.ThinPool{}, 1, []uint64{90 * mib, 30 * mib}, 0},
		"full, and promised":           {lvm.ThinPool{Data: 95}, 2, []uint64{90 * mib, 30 * mib}, 0},
		"full, and had before":         {lvm.ThinPool{Data: 96}, 2, []uint64{60 * mib}, 39 * mib},
		"nearly full":                  {lvm.ThinPool{Data: 94.9}, 2, []uint64{90 * mib, 30 * mib}, 79 * mib},
		"no room for metadata":         {lvm.ThinPool{Metadata: 75}, 2, nil, 0},
		"hardly any room for metadata": {lvm.ThinPool{Metadata: 74.9}, 1, nil, 99 * mib},
	} {
		p := &Pool{options: Options{ThinPool: "tp", Overcommit: test.overcommit}}
		g, thin := group(test.pool, test.promised...)
		if got := p.thinRoom(g, thin); got.left != test.left || (got.why != "") != (test.pool.Metadata >= 75 || test.pool.Data >= 95) {
			t.Errorf("%s: %d MiB are left (%s), want %d", name, got.left/mib, got.why, test.left/mib)
		}
	}
}
