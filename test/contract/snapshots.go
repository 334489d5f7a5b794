package contract

import (
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func (b *bench) listSnapshots() []string {
	b.Helper()
	snapshots, err := b.Pool.(snapshotter).ListSnapshots(b.ctx())
	rig.Must(b, err)
	names := []string{}
	for _, snapshot := range snapshots {
		names = append(names, snapshot.Name)
	}
	slices.Sort(names)
	return names
}

func (b *bench) snapshots() {
	pool, can := b.Pool.(snapshotter)
	if !can {
		return
	}
	info, node := b.create(pvc, size), b.node(pvc)
	b.fill(node, '1', 0, info.Size)
	rig.Must(b, b.Deactivate(b.ctx(), pvc))
	first, err := pool.CreateSnapshot(b.ctx(), "snap-1", pvc)
	rig.Must(b, err)
	if first.Name != "snap-1" || first.Volume != pvc || first.Size != info.Size || first.Created.IsZero() {
		b.Errorf("got %+v", first)
	}
	b.fill(b.node(pvc), '2', 0, info.Size)
	rig.Must(b, b.Deactivate(b.ctx(), pvc))
	if again, err := pool.CreateSnapshot(b.ctx(), "snap-1", pvc); err != nil || again != first {
		b.Errorf("first %+v, again %+v, %v", first, again, err)
	}
	_, err = pool.CreateSnapshot(b.ctx(), "snap-2", pvc)
	rig.Must(b, err)

	// Restored, the second one into a larger volume. The volume itself has gone.
	b.delete(pvc)
	for name, value := range map[string]byte{"snap-1": '1', "snap-2": '2'} {
		spec := b.spec("from-"+name, atLeast(info.Size+1))
		spec.Source = volume.Source{Snapshot: name}
		if name == "snap-1" {
			spec.Size = volume.Range{}
		}
		restored := b.createSpec(spec)
		if name == "snap-1" && restored.Size != info.Size {
			b.Errorf("restored with %d bytes, the snapshot has %d", restored.Size, info.Size)
		}
		node := b.node(spec.Name)
		b.wantOnly(node, value, 0, info.Size)
		b.wantOnly(node, 0, info.Size, restored.Size-info.Size)
		b.fill(node, '3', 0, restored.Size)
		again, err := b.Create(b.ctx(), spec)
		if err != nil || again != restored {
			b.Errorf("created %+v, again %+v, %v", restored, again, err)
		}
		spec.Source = volume.Source{}
		_, err = b.Create(b.ctx(), spec)
		b.wantError(err, volume.ErrIncompatible, "the same name without a source")
	}
	// What is written to a restored volume does not reach the snapshot.
	spec := b.spec("again", atLeast(info.Size))
	spec.Source = volume.Source{Snapshot: "snap-1"}
	b.createSpec(spec)
	b.wantOnly(b.node("again"), '1', 0, info.Size)

	_, err = b.Create(b.ctx(), volume.Spec{Name: "small", Size: volume.Range{Limit: info.Size - 1}, Source: spec.Source, Parameters: b.suite.Parameters})
	b.wantError(err, volume.ErrOutOfRange, "into a smaller volume")
	if got := b.listSnapshots(); !slices.Equal(got, []string{"snap-1", "snap-2"}) {
		b.Errorf("lists %v", got)
	}
	b.Pool = b.medium.Open(b)
	pool = b.Pool.(snapshotter)
	for _, name := range []string{"snap-1", "snap-1", "snap-2", "never"} {
		rig.Must(b, pool.DeleteSnapshot(b.ctx(), name))
	}
	if got := b.listSnapshots(); len(got) != 0 {
		b.Errorf("lists %v", got)
	}
	b.wantOnly(b.node("again"), '1', 0, info.Size)
}

func (b *bench) clones() {
	if _, can := b.Pool.(snapshotter); !can {
		return
	}
	info, node := b.create(pvc, size), b.node(pvc)
	b.fill(node, '1', 0, info.Size)
	rig.Must(b, b.Deactivate(b.ctx(), pvc))
	spec := b.spec(second, atLeast(info.Size))
	spec.Source = volume.Source{Volume: pvc}
	clone := b.createSpec(spec)
	b.fill(b.node(second), '2', 0, clone.Size)
	b.wantOnly(b.node(pvc), '1', 0, info.Size)
	b.delete(pvc)
	b.wantOnly(b.node(second), '2', 0, clone.Size)
}

func (b *bench) noSource() {
	pool, can := b.Pool.(snapshotter)
	if !can {
		spec := b.spec(pvc, atLeast(size))
		spec.Source = volume.Source{Snapshot: "never"}
		_, err := b.Create(b.ctx(), spec)
		b.wantError(err, volume.ErrInvalid, "from a snapshot, which the pool has none of")
		return
	}
	for _, source := range []volume.Source{{Snapshot: "never"}, {Volume: "never"}} {
		spec := b.spec(pvc, atLeast(size))
		spec.Source = source
		_, err := b.Create(b.ctx(), spec)
		b.wantError(err, volume.ErrNotFound, "from what is not there")
	}
	_, err := pool.CreateSnapshot(b.ctx(), "snap", "never")
	b.wantError(err, volume.ErrNotFound, "of what is not there")
	b.create(pvc, size)
	b.create(second, size)
	_, err = pool.CreateSnapshot(b.ctx(), "snap", pvc)
	rig.Must(b, err)
	_, err = pool.CreateSnapshot(b.ctx(), "snap", second)
	b.wantError(err, volume.ErrIncompatible, "the same name of another volume")
}

// A snapshot takes the space that its volume needs to be written anew.
func (b *bench) snapshotSpace() {
	pool, can := b.Pool.(snapshotter)
	if !can {
		return
	}
	free := b.available()
	half := (free/2/rig.MiB - 1) * rig.MiB // A filesystem needs a little for itself.
	info := b.create(pvc, half)
	b.fill(b.node(pvc), '1', 0, info.Size)
	rig.Must(b, b.Deactivate(b.ctx(), pvc))
	_, err := pool.CreateSnapshot(b.ctx(), "snap-1", pvc)
	rig.Must(b, err)
	_, err = pool.CreateSnapshot(b.ctx(), "snap-2", pvc)
	b.wantError(err, volume.ErrExhausted, "one more than there is space for")
	spec := b.spec(second, volume.Range{})
	spec.Source = volume.Source{Snapshot: "snap-1"}
	_, err = b.Create(b.ctx(), spec)
	b.wantError(err, volume.ErrExhausted, "a volume that there is no space for")
	// Every block of it can be written anew.
	b.fill(b.node(pvc), '2', 0, info.Size)
	rig.Must(b, pool.DeleteSnapshot(b.ctx(), "snap-1"))
	b.delete(pvc)
	b.settled(free - rig.MiB)
}
