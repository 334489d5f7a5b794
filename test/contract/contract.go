// Package contract is the suite that every pool must pass, on real devices: what
// driver.Pool and its optional abilities promise.
package contract

import (
	"context"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Medium is what a pool keeps its volumes on. It goes with its test.
type Medium interface {
	// Open opens the pool as a plugin does that starts, and ends the use by the
	// one that was opened before.
	Open(t testing.TB) driver.Pool
}

// Suite is a kind of pool under test.
type Suite struct {
	// New makes an empty medium that holds at least 63 MiB and at most 1 GiB of
	// volumes.
	New func(t testing.TB) Medium
	// Single says that each disk of the medium holds one volume, whatever its size.
	// Their sizes differ.
	Single bool
	// Parameters are those of a StorageClass, valid for the pool.
	Parameters map[string]string
}

type expander interface {
	Expand(ctx context.Context, name string, size volume.Range) (uint64, error)
}

type snapshotter interface {
	CreateSnapshot(ctx context.Context, name, of string) (volume.Snapshot, error)
	DeleteSnapshot(ctx context.Context, name string) error
	ListSnapshots(ctx context.Context) ([]volume.Snapshot, error)
}

const (
	size   = 8 * rig.MiB
	pvc    = "pvc-0a1b2c3d-1111-2222-3333-444455556666"
	second = "pvc-ffffffff-1111-2222-3333-444455556666"
)

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	rig.RequireRoot(t)
	for name, test := range map[string]func(*bench){
		"life of a volume":               (*bench).life,
		"names":                          (*bench).names,
		"create is idempotent":           (*bench).idempotent,
		"parameters are strict":          (*bench).strict,
		"sizes are exact":                (*bench).sizes,
		"capacity is what can be had":    (*bench).capacity,
		"the last space goes to one":     (*bench).race,
		"nobody reads what was":          (*bench).wiped,
		"a volume in use stays":          (*bench).inUse,
		"the medium is the database":     (*bench).reopened,
		"volumes grow while in use":      (*bench).grows,
		"encryption is kept":             (*bench).encrypted,
		"all at once":                    (*bench).parallel,
		"snapshots":                      (*bench).snapshots,
		"clones":                         (*bench).clones,
		"sources that are not there":     (*bench).noSource,
		"snapshots and capacity":         (*bench).snapshotSpace,
		"what is not there is not found": (*bench).absent,
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{T: t, suite: s, medium: s.New(t)}
			b.Pool = b.medium.Open(t)
			test(b)
		})
	}
}
