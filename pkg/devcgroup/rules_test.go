package devcgroup

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// newV1 makes a cgroup of cgroup v1 with rules.
func newV1(t *testing.T, rules ...string) *box {
	t.Helper()
	return newV1Below(t, mounted(t, false), "", rules...)
}

func newV1Below(t *testing.T, hierarchies Hierarchies, parent string, rules ...string) *box {
	t.Helper()
	box := newBox(t, hierarchies, parent)
	box.write(t, "devices.deny", "a")
	for _, rule := range rules {
		box.write(t, "devices.allow", rule)
	}
	return box
}

func (b *box) write(t *testing.T, name, text string) {
	t.Helper()
	rig.Must(t, os.WriteFile(b.dir+"/"+name, []byte(text), 0))
}

// null is what lets the shells of the test work.
const null = "c 1:3 rwm"

func TestRules(t *testing.T) {
	for name, test := range map[string]struct {
		rules              []string
		own, granted, then string
		untouched          bool
		// recorded is what is known to be granted, if it is not all that is asked for.
		recorded Access
	}{
		"nothing allowed":           {[]string{null}, "", "rw", "r w rw", false, Read | Write},
		"to read":                   {[]string{null}, "", "r", "r", false, Read},
		"to write":                  {[]string{null}, "", "w", "w", false, Write},
		"to make nodes":             {[]string{null}, "", "m", "m", false, Mknod},
		"all":                       {[]string{null}, "", "rwm", "r w rw m", false, allAccess},
		"reads by itself":           {[]string{null, "b 600:3 r"}, "r", "rw", "r w rw", false, Write},
		"reads, and writes as well": {[]string{null, "b 600:3 r"}, "r", "w", "r w rw", false, Write},
		"reads all disks":           {[]string{null, "b *:* r"}, "r", "rw", "r w rw", false, Read | Write},
		"reads disks of a driver":   {[]string{null, "b 600:* rm"}, "r m", "w", "r w m", false, Write},
		"makes all nodes":           {[]string{null, "b *:* m"}, "m", "rw", "r w rw m", false, Read | Write},
		"reads by itself already":   {[]string{null, "b 600:3 r"}, "r", "r", "r", true, 0},
		"has it by itself":          {[]string{null, "b 600:3 rwm"}, "r w rw m", "rw", "r w rw m", true, 0},
		"has all by itself":         {[]string{"a"}, "r w rw m", "rw", "r w rw m", true, 0},
		"rule for another":          {[]string{null, "b 600:4 rwm", "b 601:3 rwm", "c 600:3 rwm"}, "", "rw", "r w rw", false, Read | Write},
	} {
		t.Run(name, func(t *testing.T) {
			box := newV1(t, test.rules...)
			cgroup, before := box.open(t), box.state(t)
			box.wantCan(t, deviceA, test.own)
			access, err := ParseAccess(test.granted)
			rig.Must(t, err)

			allow(t, cgroup, deviceA, access)
			box.wantCan(t, deviceA, test.then)
			after := box.state(t)
			if test.untouched {
				box.wantState(t, before)
				wantGrants(t, cgroup)
			} else {
				wantGrants(t, cgroup, Grant{deviceA, test.recorded})
			}
			allow(t, cgroup, deviceA, access)
			box.wantState(t, after)

			take(t, cgroup, deviceA)
			box.wantState(t, before)
			box.wantCan(t, deviceA, test.own)
			wantGrants(t, cgroup)
			take(t, cgroup, deviceA)
			box.wantState(t, before)
		})
	}
}

func TestTwoDevicesByRules(t *testing.T) {
	box := newV1(t, null)
	cgroup, before := box.open(t), box.state(t)
	allow(t, cgroup, deviceA, Read)
	justA := box.state(t)
	allow(t, cgroup, deviceB, Read|Write)
	wantGrants(t, cgroup, Grant{deviceB, Read | Write}, Grant{deviceA, Read})
	take(t, cgroup, deviceB)
	box.wantState(t, justA)
	allow(t, cgroup, deviceA, Write)
	box.wantCan(t, deviceA, "r w rw")
	take(t, cgroup, deviceA)
	box.wantState(t, before)
}

func TestRuleDeniedAbove(t *testing.T) {
	parent := newV1(t, null, "b 600:3 r")
	box := newV1Below(t, parent.Hierarchies, parent.dir, null)
	cgroup, before, above := box.open(t), box.state(t), parent.state(t)
	for number, access := range map[linux.DeviceNumber]Access{deviceA: Read | Write, deviceB: Read} {
		err := cgroup.Allow(context.Background(), number, access)
		if !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "the cgroup above "+box.dir+" does not allow device "+number.String()) {
			t.Error(err)
		}
		box.wantState(t, before)
		parent.wantState(t, above)
		wantGrants(t, cgroup)
	}
	allow(t, cgroup, deviceA, Read)
	take(t, cgroup, deviceA)
	box.wantState(t, before)
}

func TestNestedRules(t *testing.T) { testNested(t, false) }

// Where the container's own rule goes while something is granted beside it, the grant
// alone is taken away.
func TestOwnRuleChanges(t *testing.T) {
	box := newV1(t, null, "b 600:3 r")
	cgroup := box.open(t)
	allow(t, cgroup, deviceA, Read|Write)
	box.write(t, "devices.deny", "b 600:3 r")
	box.wantCan(t, deviceA, "w")
	allow(t, cgroup, deviceA, Read|Write)
	box.wantCan(t, deviceA, "r w rw")
	take(t, cgroup, deviceA)
	box.wantCan(t, deviceA, "")
}
