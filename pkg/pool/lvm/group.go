package lvm

import (
	"context"
	"fmt"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// group is the volume group as it was when it was looked at, with what of it is this
// pool's.
type group struct {
	lvm.Group
	pool    string
	entries []entry
	// refused says which of its disks are not believed, and why.
	refused string
}

// entry is a logical volume of the pool.
type entry struct {
	lvm.Volume
	record
	// err is why its tags cannot be understood, but for what it is.
	err error
}

// look looks at the volume group.
func (p *Pool) look(ctx context.Context) (group, error) {
	report, err := p.report(ctx)
	if err != nil {
		return group{}, unusable(fmt.Errorf("pool %s: %w", p.name, err))
	}
	g := group{Group: report, pool: p.name}
	if len(report.Missing) > 0 {
		g.refused = p.refused(ctx, report.UUID)
	}
	for _, v := range report.Volumes {
		record, ours, err := readRecord(p.name, v.Tags)
		if err != nil {
			err = fmt.Errorf("logical volume %s/%s: %w", g.Name, v.Name, err)
		}
		if ours {
			g.entries = append(g.entries, entry{v, record, err})
		}
	}
	p.see(g)
	return g, nil
}

// check returns an error where the volume group cannot be changed. Errors:
// volume.ErrPrecondition.
func (g *group) check() error {
	switch {
	case g.Exported:
		return fmt.Errorf("%w: volume group %s is exported; vgimport makes it this node's", volume.ErrPrecondition, g.Name)
	case g.ReadOnly:
		return fmt.Errorf("%w: volume group %s is read-only; vgchange --permission rw lets it be changed", volume.ErrPrecondition, g.Name)
	case len(g.Missing) > 0:
		return fmt.Errorf("%w: volume group %s lacks the disks (physical volumes) %s, and LVM changes nothing without them; attach them, or give them up with vgreduce --removemissing %s%s",
			volume.ErrPrecondition, g.Name, strings.Join(g.Missing, ", "), g.Name, g.refused)
	}
	return nil
}

// find returns what is there under a name, whole or not. Errors: volume.ErrNotFound;
// volume.ErrMismatch where two are.
func (g *group) find(kind kind, name string) (entry, error) {
	var found *entry
	for i := range g.entries {
		e := &g.entries[i]
		if e.kind != kind || e.name != name {
			continue
		}
		if found != nil {
			return entry{}, fmt.Errorf("%w: the logical volumes %s and %s of volume group %s both have the tags of %s %s; take them (lvchange --deltag) from the one that is a copy",
				volume.ErrMismatch, found.Name, e.Name, g.Name, kind, name)
		}
		found = e
	}
	if found == nil {
		return entry{}, fmt.Errorf("%w: pool %s has no %s %s in volume group %s", volume.ErrNotFound, g.pool, kind, name, g.Name)
	}
	return *found, found.err
}

// whole returns what is there under a name, once it was made.
func (g *group) whole(kind kind, name string) (entry, error) {
	e, err := g.find(kind, name)
	if err == nil && e.making {
		return entry{}, fmt.Errorf("%w: %s %s of pool %s is not made yet", volume.ErrNotFound, kind, name, g.pool)
	}
	return e, err
}

// checkName returns an error where a logical volume that is not the pool's has a name.
// Errors: volume.ErrPrecondition.
func (g *group) checkName(name string) error {
	for _, v := range g.Volumes {
		if v.Name == name {
			return fmt.Errorf("%w: volume group %s has a logical volume %s that is not of pool %s; rename it", volume.ErrPrecondition, g.Name, name, g.pool)
		}
	}
	return nil
}

// thinPool returns a thin pool. Errors: volume.ErrPrecondition where there is none of
// the name, or it is not fit for volumes.
func (g *group) thinPool(name string) (lvm.Volume, error) {
	for _, v := range g.Volumes {
		if v.Name != name {
			continue
		}
		if v.Thin == nil {
			return v, fmt.Errorf("%w: logical volume %s/%s is not a thin pool", volume.ErrPrecondition, g.Name, name)
		}
		return v, checkThin(g.Name+"/"+name, v)
	}
	return lvm.Volume{}, fmt.Errorf("%w: volume group %s has no thin pool %s; make it with lvcreate --type thin-pool", volume.ErrPrecondition, g.Name, name)
}

func checkThin(name string, pool lvm.Volume) error {
	switch thin := pool.Thin; {
	case pool.Partial:
		return fmt.Errorf("%w: a disk of thin pool %s has gone", volume.ErrPrecondition, name)
	case !thin.Zero:
		return fmt.Errorf("%w: thin pool %s does not zero what it gives to a volume, which would show what others had there; turn that on with lvchange --zero y %s", volume.ErrPrecondition, name, name)
	case thin.NeedsCheck || thin.Health == "failed" || thin.Health == "metadata_read_only":
		return fmt.Errorf("%w: the metadata of thin pool %s has to be repaired (health %q); deactivate it, and see lvmthin(7) on lvconvert --repair %s", volume.ErrPrecondition, name, thin.Health, name)
	}
	return nil
}
