package devcgroup

import (
	"os"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Cgroups that are there already get the grant, those that are made later have it, one that
// was restricted on purpose is left alone, and all are as before in the end.
func TestBelowByRules(t *testing.T) {
	outer := newV1(t, null, "b 600:4 rw")
	child := newBox(t, outer.Hierarchies, outer.dir)
	grandchild := newBox(t, outer.Hierarchies, child.dir)
	restricted := newBox(t, outer.Hierarchies, outer.dir)
	restricted.write(t, "devices.deny", "b 600:4 rw")
	own := newBox(t, outer.Hierarchies, outer.dir)
	cgroup := outer.open(t)
	before := map[*box][]string{}
	for _, one := range []*box{outer, child, grandchild, restricted, own} {
		before[one] = one.state(t)
	}

	allow(t, cgroup, deviceA, Read|Write)
	later := newBox(t, outer.Hierarchies, child.dir)
	for _, one := range []*box{outer, child, grandchild, own, later} {
		one.wantCan(t, deviceA, "r w rw")
	}
	restricted.wantCan(t, deviceA, "")
	// As an earlier version left it.
	child.write(t, "devices.deny", line(deviceA, Read|Write))
	allow(t, cgroup, deviceA, Read|Write)
	grandchild.wantCan(t, deviceA, "r w rw")

	take(t, cgroup, deviceA)
	before[later] = before[grandchild]
	for one, state := range before {
		one.wantState(t, state)
	}
}

// What the rules of a cgroup below allowed by themselves stays.
func TestOwnRulesBelow(t *testing.T) {
	outer := newV1(t, null, "b 600:3 r")
	child := newBox(t, outer.Hierarchies, outer.dir)
	cgroup, before := outer.open(t), child.state(t)
	allow(t, cgroup, deviceA, Read|Write)
	child.wantCan(t, deviceA, "r w rw")
	later := newBox(t, outer.Hierarchies, outer.dir)
	rig.Must(t, os.WriteFile(later.dir+"/cgroup.procs", nil, 0))
	take(t, cgroup, deviceA)
	child.wantState(t, before)
	later.wantState(t, before)
}
