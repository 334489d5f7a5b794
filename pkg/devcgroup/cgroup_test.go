package devcgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// eachVersion runs a test in a cgroup of either version in which nothing is allowed.
func eachVersion(t *testing.T, test func(t *testing.T, box *box)) {
	t.Run("v1", func(t *testing.T) { test(t, newV1(t, null)) })
	t.Run("v2", func(t *testing.T) { test(t, newV2(t, denial)) })
}

func ledgerOf(t *testing.T, box *box, owner string) ledger {
	t.Helper()
	dir, err := os.Open(box.dir)
	rig.Must(t, err)
	t.Cleanup(func() { dir.Close() })
	return ledger{dir, strings.TrimPrefix(box.dir, box.root()), owner}
}

// The plugin dies after it has written down what it will grant, and before it grants
// it; or after it has revoked it, and before it has forgotten it.
func TestWrittenDownAndNotGranted(t *testing.T) {
	eachVersion(t, func(t *testing.T, box *box) {
		cgroup, before := box.open(t), box.state(t)
		_, err := ledgerOf(t, box, box.Owner).add(deviceA, Read|Write)
		rig.Must(t, err)
		wantGrants(t, cgroup, Grant{deviceA, Read | Write})
		take(t, cgroup, deviceA)
		box.wantState(t, before)
		// Or it is granted after all.
		_, err = ledgerOf(t, box, box.Owner).add(deviceA, Read)
		rig.Must(t, err)
		allow(t, cgroup, deviceA, Read)
		box.wantCan(t, deviceA, "r")
		take(t, cgroup, deviceA)
		box.wantState(t, before)
	})
}

// Somebody takes away what was granted, as systemd does. It can be given again, and
// taken away.
func TestGrantIsLost(t *testing.T) {
	eachVersion(t, func(t *testing.T, box *box) {
		cgroup, before := box.open(t), box.state(t)
		allow(t, cgroup, deviceA, Read)
		for range 2 {
			if box.Devices != "" {
				box.write(t, "devices.deny", line(deviceA, Read))
			} else {
				old, err := linux.OpenProgram(box.programs(t)[0].ID)
				rig.Must(t, err)
				box.attach(t, old.Name, denial, old, linux.AttachMulti)
				old.Close()
			}
			box.wantCan(t, deviceA, "")
			wantGrants(t, cgroup, Grant{deviceA, Read})
			allow(t, cgroup, deviceA, Read)
			box.wantCan(t, deviceA, "r")
		}
		take(t, cgroup, deviceA)
		box.wantState(t, before)
	})
}

func TestRemovedCgroup(t *testing.T) {
	eachVersion(t, func(t *testing.T, box *box) {
		process := exec.CommandContext(rig.Context(t), "sleep", "infinity")
		rig.Must(t, process.Start())
		t.Cleanup(func() { end(process) })
		rig.Must(t, os.WriteFile(box.dir+"/cgroup.procs", fmt.Append(nil, process.Process.Pid), 0))
		cgroup := openAs(t, box.Hierarchies, process.Process.Pid, "")
		allow(t, cgroup, deviceA, Read)
		end(process)
		rig.Must(t, os.Remove(box.dir))

		wantGrants(t, cgroup)
		take(t, cgroup, deviceA)
		if err := cgroup.Allow(context.Background(), deviceA, Read); err == nil {
			t.Error("a cgroup that is gone was granted something")
		}
		if _, err := Open(box.Hierarchies, process.Process.Pid, ""); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("opening it: %v", err)
		}
		// Another that takes its name is not mistaken for it.
		rig.Must(t, os.Mkdir(box.dir, 0o755))
		_, err := ledgerOf(t, box, box.Owner).add(deviceB, Read)
		rig.Must(t, err)
		before := box.state(t)
		wantGrants(t, cgroup)
		take(t, cgroup, deviceB)
		box.wantState(t, before)
	})
}

// What another plugin on the machine has granted is not this one's.
func TestOwners(t *testing.T) {
	eachVersion(t, func(t *testing.T, box *box) {
		pid := box.start(t)
		own, others := box.Hierarchies, box.Hierarchies
		// As long as names of nodes may be.
		others.Owner = strings.Repeat("another.", 31) + "node"
		mine, theirs := openAs(t, own, pid, ""), openAs(t, others, pid, "")
		before := box.state(t)
		allow(t, theirs, deviceA, Read)
		wantGrants(t, theirs, Grant{deviceA, Read})
		wantGrants(t, mine)
		granted := box.state(t)
		for what, err := range map[string]error{
			"granting more": mine.Allow(context.Background(), deviceA, Read|Write),
			"revoking":      mine.Revoke(context.Background(), deviceA),
		} {
			if !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), others.Owner) {
				t.Errorf("%s: %v", what, err)
			}
		}
		box.wantState(t, granted)
		if found := grantedIn(t, own, box); len(found) > 0 {
			t.Errorf("listed as its own: %v", found)
		}
		allow(t, mine, deviceB, Read)
		if found := grantedIn(t, own, box); !slices.Equal(found, []Grant{{deviceB, Read}}) {
			t.Errorf("listed as its own: %v", found)
		}
		take(t, mine, deviceB)
		take(t, theirs, deviceA)
		box.wantState(t, before)
	})
}

// grantedIn returns what Granted finds in a cgroup.
func grantedIn(t *testing.T, hierarchies Hierarchies, box *box) []Grant {
	t.Helper()
	all, err := Granted(hierarchies)
	rig.Must(t, err)
	var found []Grant
	for _, cgroup := range all {
		if cgroup.String() == box.dir {
			grants, err := cgroup.Grants()
			rig.Must(t, err)
			found = append(found, grants...)
		}
		cgroup.Close()
	}
	return found
}

// What was granted is found without a record, and can be taken away.
func TestGranted(t *testing.T) {
	eachVersion(t, func(t *testing.T, box *box) {
		cgroup, before := box.open(t), box.state(t)
		if found := grantedIn(t, box.Hierarchies, box); len(found) > 0 {
			t.Errorf("found before: %v", found)
		}
		allow(t, cgroup, deviceA, Read)
		all, err := Granted(box.Hierarchies)
		rig.Must(t, err)
		taken := 0
		for _, found := range all {
			if cgroup.Covers(found) && found.Covers(cgroup) {
				take(t, found, deviceA)
				taken++
			}
			found.Close()
		}
		if taken != 1 {
			t.Errorf("it was found %d times", taken)
		}
		box.wantState(t, before)
		box.wantCan(t, deviceA, "")
	})
}

// Attributes that are not as they were written are an error, and nothing is done.
func TestMalformedAttributes(t *testing.T) {
	eachVersion(t, func(t *testing.T, box *box) {
		cgroup, ledger := box.open(t), ledgerOf(t, box, box.Owner)
		rig.Must(t, linux.SetAttribute(ledger.file, attribute(deviceA), "everything"))
		before := box.state(t)
		for what, err := range map[string]error{
			"allow": cgroup.Allow(context.Background(), deviceA, Read), "revoke": cgroup.Revoke(context.Background(), deviceA), "list": listed(cgroup),
		} {
			if err == nil || !strings.Contains(err.Error(), "everything") {
				t.Errorf("%s: %v", what, err)
			}
		}
		box.wantState(t, before)
		rig.Must(t, linux.RemoveAttribute(ledger.file, attribute(deviceA)))
		rig.Must(t, linux.SetAttribute(ledger.file, attributePrefix+"disk", "r "+box.Owner))
		if err := listed(cgroup); err == nil || !strings.Contains(err.Error(), "disk") {
			t.Errorf("list: %v", err)
		}
	})
}

func listed(cgroup *Cgroup) error {
	_, err := cgroup.Grants()
	return err
}

// A hybrid machine has both versions, and both must let the device pass.
func TestBothVersions(t *testing.T) {
	one, two := newV1(t, null), newV2(t, denial)
	both := Hierarchies{Devices: one.Devices, Unified: two.Unified, Owner: t.Name()}
	pid := one.start(t)
	rig.Must(t, os.WriteFile(two.dir+"/cgroup.procs", fmt.Append(nil, pid), 0))
	cgroup, beforeOne, beforeTwo := openAs(t, both, pid, ""), one.state(t), two.state(t)
	allow(t, cgroup, deviceA, Read|Write)
	one.wantCan(t, deviceA, "r w rw")
	two.wantCan(t, deviceA, "r w rw")
	wantGrants(t, cgroup, Grant{deviceA, Read | Write})
	take(t, cgroup, deviceA)
	one.wantState(t, beforeOne)
	two.wantState(t, beforeTwo)

	// Where it cannot be had in one, it is not left in the other.
	two.attach(t, "rawblock_test1", join([]linux.Instruction{{Code: 0x85, Immediate: 7}}, denial), nil, linux.AttachMulti)
	beforeTwo = two.state(t)
	if err := cgroup.Allow(context.Background(), deviceA, Read); !errors.Is(err, volume.ErrPrecondition) {
		t.Error(err)
	}
	one.wantState(t, beforeOne)
	two.wantState(t, beforeTwo)
	wantGrants(t, cgroup)
}
