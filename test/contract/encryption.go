package contract

import (
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A pool keeps whether a volume is encrypted, with the volume and with its copies, so
// that nobody who can edit a PersistentVolume decides it.
func (b *bench) encrypted() {
	spec := b.spec(pvc, atLeast(size))
	spec.Encryption = volume.LUKS2
	info := b.createSpec(spec)
	if info.Encryption != volume.LUKS2 {
		b.Errorf("made with %q, it has %q", volume.LUKS2, info.Encryption)
	}
	if again, err := b.Create(b.ctx(), spec); err != nil || again != info {
		b.Errorf("created %+v, again %+v, %v", info, again, err)
	}
	_, err := b.Create(b.ctx(), b.spec(pvc, atLeast(size)))
	b.wantError(err, volume.ErrIncompatible, "the same name without encryption")
	plain := b.create(second, size)
	other := b.spec(second, atLeast(size))
	other.Encryption = volume.LUKS2
	_, err = b.Create(b.ctx(), other)
	b.wantError(err, volume.ErrIncompatible, "the same name with encryption")

	b.Pool = b.medium.Open(b)
	listed, err := b.List(b.ctx())
	rig.Must(b, err)
	for _, want := range []volume.Info{info, plain} {
		if got, err := b.Get(b.ctx(), want.Name); err != nil || got != want {
			b.Errorf("opened again, got %+v, %v; want %+v", got, err, want)
		}
		if !slices.Contains(listed, want) {
			b.Errorf("%+v is not listed: %+v", want, listed)
		}
	}
	if pool, can := b.Pool.(snapshotter); can {
		b.encryptedCopies(pool)
	}
	unknown := b.spec("unknown", atLeast(size))
	unknown.Encryption = "rot13"
	_, err = b.Create(b.ctx(), unknown)
	b.wantError(err, volume.ErrInvalid, "an encryption that nobody knows")
}

func (b *bench) encryptedCopies(pool snapshotter) {
	snapshot, err := pool.CreateSnapshot(b.ctx(), "snapshot", pvc)
	rig.Must(b, err)
	if snapshot.Encryption != volume.LUKS2 {
		b.Errorf("the snapshot of an encrypted volume is %+v", snapshot)
	}
	snapshots, err := pool.ListSnapshots(b.ctx())
	if err != nil || len(snapshots) != 1 || snapshots[0] != snapshot {
		b.Errorf("made %+v, listed %+v, %v", snapshot, snapshots, err)
	}
	for name, source := range map[string]volume.Source{"restored": {Snapshot: "snapshot"}, "cloned": {Volume: pvc}} {
		spec := b.spec(name, atLeast(size))
		spec.Source = source
		_, err := b.Create(b.ctx(), spec)
		b.wantError(err, volume.ErrInvalid, "a plain copy of an encrypted volume")
		spec.Encryption = volume.LUKS2
		if got := b.createSpec(spec); got.Encryption != volume.LUKS2 {
			b.Errorf("a copy of an encrypted volume is %+v", got)
		}
	}
	spec := b.spec("other", atLeast(size))
	spec.Source, spec.Encryption = volume.Source{Volume: second}, volume.LUKS2
	_, err = b.Create(b.ctx(), spec)
	b.wantError(err, volume.ErrInvalid, "an encrypted copy of a plain volume")
}
