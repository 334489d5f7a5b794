package devcgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// attachOverride is BPF_F_ALLOW_OVERRIDE: one program, which another below replaces.
const attachOverride linux.AttachFlags = unix.BPF_F_ALLOW_OVERRIDE

// newV2 makes a cgroup of cgroup v2 with programs.
func newV2(t *testing.T, programs ...[]linux.Instruction) *box {
	t.Helper()
	return newV2Below(t, mounted(t, true), "", programs...)
}

func newV2Below(t *testing.T, hierarchies Hierarchies, parent string, programs ...[]linux.Instruction) *box {
	t.Helper()
	box := newBox(t, hierarchies, parent)
	for i, program := range programs {
		box.attach(t, fmt.Sprintf("rawblock_test%d", i), program, nil, linux.AttachMulti)
	}
	return box
}

// attach attaches a program as a container runtime does, in the place of an old one
// where there is one.
func (b *box) attach(t *testing.T, name string, instructions []linux.Instruction, old *linux.Program, flags linux.AttachFlags) {
	t.Helper()
	rig.Must(t, b.tryAttach(name, instructions, old, flags))
}

func (b *box) tryAttach(name string, instructions []linux.Instruction, old *linux.Program, flags linux.AttachFlags) error {
	program, err := linux.LoadDeviceProgram(name, true, instructions)
	if err != nil {
		return err
	}
	defer program.Close()
	dir, err := os.Open(b.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return linux.AttachDeviceProgram(dir, program, old, flags)
}

// programs returns the programs of the cgroup. They are closed already.
func (b *box) programs(t *testing.T) []*linux.Program {
	t.Helper()
	dir, err := os.Open(b.dir)
	rig.Must(t, err)
	defer dir.Close()
	ids, _, err := linux.DeviceProgramIDs(dir, false)
	rig.Must(t, err)
	var found []*linux.Program
	for _, id := range ids {
		program, err := linux.OpenProgram(id)
		rig.Must(t, err)
		program.Close()
		found = append(found, program)
	}
	return found
}

func TestPrograms(t *testing.T) {
	for name, test := range map[string]struct {
		programs [][]linux.Instruction
		flags    linux.AttachFlags
		// own is what the cgroup's own programs allow, granted what is asked for, and
		// then what it can do with that.
		own, granted, then string
		// untouched says that nothing is to be granted.
		untouched bool
	}{
		"nothing allowed":           {[][]linux.Instruction{denial}, linux.AttachMulti, "", "rw", "r w rw", false},
		"to read":                   {[][]linux.Instruction{denial}, linux.AttachMulti, "", "r", "r", false},
		"to write":                  {[][]linux.Instruction{denial}, linux.AttachMulti, "", "w", "w", false},
		"to make nodes":             {[][]linux.Instruction{denial}, linux.AttachMulti, "", "m", "m", false},
		"all":                       {[][]linux.Instruction{denial}, linux.AttachMulti, "", "rwm", "r w rw m", false},
		"reads by itself":           {[][]linux.Instruction{ownRule(deviceA, Read, denial)}, linux.AttachMulti, "r", "rw", "r w rw", false},
		"reads, and writes as well": {[][]linux.Instruction{ownRule(deviceA, Read, denial)}, linux.AttachMulti, "r", "w", "r w", false},
		"reads by itself already":   {[][]linux.Instruction{ownRule(deviceA, Read, denial)}, linux.AttachMulti, "r", "r", "r", true},
		"has all by itself":         {[][]linux.Instruction{approval}, linux.AttachMulti, "r w rw m", "rw", "r w rw m", true},
		"no program":                {nil, linux.AttachMulti, "r w rw m", "rw", "r w rw m", true},
		"rule for another":          {[][]linux.Instruction{ownRule(deviceB, Read, denial)}, linux.AttachMulti, "", "rw", "r w rw", false},
		"several programs":          {[][]linux.Instruction{denial, approval, ownRule(deviceA, Read, denial), denial}, linux.AttachMulti, "", "rw", "r w rw", false},
		"several, one of which all": {[][]linux.Instruction{ownRule(deviceA, Read, denial), approval}, linux.AttachMulti, "r", "rw", "r w rw", false},
		"attached for override":     {[][]linux.Instruction{denial}, attachOverride, "", "rw", "r w rw", false},
		"attached alone":            {[][]linux.Instruction{denial}, 0, "", "rw", "r w rw", false},
	} {
		t.Run(name, func(t *testing.T) {
			box := newV2(t)
			for i, program := range test.programs {
				box.attach(t, fmt.Sprintf("rawblock_test%d", i), program, nil, test.flags)
			}
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
				wantGrants(t, cgroup, Grant{deviceA, access})
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

func TestTwoDevices(t *testing.T) {
	box := newV2(t, denial, ownRule(deviceB, Read, denial))
	cgroup, before := box.open(t), box.state(t)
	allow(t, cgroup, deviceA, Read|Write)
	justA := box.state(t)
	allow(t, cgroup, deviceB, Read)
	wantGrants(t, cgroup, Grant{deviceB, Read}, Grant{deviceA, Read | Write})
	take(t, cgroup, deviceB)
	box.wantState(t, justA)
	allow(t, cgroup, deviceB, Read|Write)
	take(t, cgroup, deviceA)
	wantGrants(t, cgroup, Grant{deviceB, Read | Write})
	if allowed, err := cgroup.Allows(deviceA, Read); err != nil || allowed {
		t.Errorf("the first may be opened still: %t, %v", allowed, err)
	}
	allow(t, cgroup, deviceB, Write)
	take(t, cgroup, deviceB)
	box.wantState(t, before)
}

// What is granted in two steps is granted together.
func TestGrantGrows(t *testing.T) {
	box := newV2(t, denial)
	cgroup, before := box.open(t), box.state(t)
	allow(t, cgroup, deviceA, Read)
	allow(t, cgroup, deviceA, Write)
	box.wantCan(t, deviceA, "r w rw")
	wantGrants(t, cgroup, Grant{deviceA, Read | Write})
	if allowed, err := cgroup.Allows(deviceA, Read|Write); err != nil || !allowed {
		t.Errorf("both together: %t, %v", allowed, err)
	}
	take(t, cgroup, deviceA)
	box.wantState(t, before)
}

func TestManyDevices(t *testing.T) {
	const many = 64
	box := newV2(t, denial)
	cgroup, before := box.open(t), box.state(t)
	number := func(i int) linux.DeviceNumber { return linux.DeviceNumber{Major: 259, Minor: uint32(i)} }
	for i := range many {
		allow(t, cgroup, number(i), Read)
	}
	for i := range many {
		take(t, cgroup, number(i*7%many)) // Not in the order in which they came.
	}
	box.wantState(t, before)
}

// Programs that cannot be loaded again, or followed, are left alone.
func TestProgramsThatCannotBeExtended(t *testing.T) {
	const random = 7 // BPF_FUNC_get_prandom_u32
	call := linux.Instruction{Code: 0x85, Immediate: random}
	for name, test := range map[string]struct {
		program []linux.Instruction
		says    string
	}{
		"calls the kernel": {join([]linux.Instruction{call}, denial), "it calls a function"},
		"calls the kernel for others": {join([]linux.Instruction{
			{Code: opLoad, Registers: registers(2, 1), Offset: argMajor},
			{Code: opJumpUnequal, Registers: 2, Immediate: 9999, Offset: 1},
			call,
		}, denial), "calls functions or uses maps"},
		"keeps something": {join([]linux.Instruction{{Code: 0x7b, Registers: registers(10, 1), Offset: -8}}, denial), "operation 0x7b"},
	} {
		t.Run(name, func(t *testing.T) { testNotExtended(t, newV2(t, test.program), test.says) })
	}
	// A map is there for as long as its descriptor, or a program with it.
	fd := newMap(t)
	useMap := []linux.Instruction{{Code: loadImmediate64, Registers: registers(2, 1), Immediate: int32(fd)}, {}}
	t.Run("uses a map", func(t *testing.T) { testNotExtended(t, newV2(t, join(useMap, denial)), "it uses a map") })
	t.Run("uses a map for others", func(t *testing.T) {
		testNotExtended(t, newV2(t, approval, join([]linux.Instruction{
			{Code: opLoad, Registers: registers(2, 1), Offset: argMajor},
			{Code: opJumpUnequal, Registers: 2, Immediate: 9999, Offset: 2},
		}, useMap, denial)), "calls functions or uses maps")
	})
}

func testNotExtended(t *testing.T, box *box, says string) {
	cgroup, before := box.open(t), box.state(t)
	err := cgroup.Allow(context.Background(), deviceA, Read)
	if !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), says) {
		t.Errorf("%v; want the words %q", err, says)
	}
	box.wantState(t, before)
	wantGrants(t, cgroup)
	take(t, cgroup, deviceA)
	box.wantState(t, before)
}

// The constants of a program are hidden by a setting of the machine, which a test
// must not touch: the instruction is one that the kernel shows then.
func TestCheckLoadable(t *testing.T) {
	hidden := &linux.Program{Instructions: []linux.Instruction{{Code: opMove, Registers: hiddenRegister}}}
	if err := checkLoadable(hidden); !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "bpf_jit_harden") {
		t.Errorf("with constants hidden: %v", err)
	}
	rig.Must(t, checkLoadable(&linux.Program{Instructions: denial}))
}

// newMap makes a BPF map until the test ends.
func newMap(t *testing.T) int {
	t.Helper()
	const create, array = 0, 2 // BPF_MAP_CREATE, BPF_MAP_TYPE_ARRAY
	attr := struct{ kind, keySize, valueSize, entries, flags uint32 }{array, 4, 4, 1, 0}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, create, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { unix.Close(int(fd)) })
	return int(fd)
}

// A cgroup above is others' too: what it denies is not granted, and it is said where.
func TestDeniedAbove(t *testing.T) {
	parent := newV2(t, denial)
	box := newV2Below(t, parent.Hierarchies, parent.dir, denial)
	cgroup, before, above := box.open(t), box.state(t), parent.state(t)
	err := cgroup.Allow(context.Background(), deviceA, Read)
	if !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "a cgroup above does not allow it; see DeviceAllow= of the slices") {
		t.Error(err)
	}
	box.wantState(t, before)
	parent.wantState(t, above)
	wantGrants(t, cgroup)
}

// Programs in a container make cgroups of their own below the container's, with
// programs of their own.
func TestNestedPrograms(t *testing.T) { testNested(t, true) }

func testNested(t *testing.T, v2 bool) {
	hierarchies := mounted(t, v2)
	below := func(parent string) *box {
		if v2 {
			return newV2Below(t, hierarchies, parent, denial)
		}
		return newV1Below(t, hierarchies, parent, null)
	}
	outer := below("")
	if !v2 {
		outer.write(t, "devices.allow", line(deviceA, Read|Write))
	}
	middle := below(outer.dir)
	inner := below(middle.dir)
	pid, id := inner.start(t), strings.TrimPrefix(middle.dir, outer.dir+"/")
	before := [][]string{outer.state(t), middle.state(t), inner.state(t)}
	// The container is the middle one: that above is not its own.
	cgroup := openAs(t, hierarchies, pid, id)
	if got, want := cgroup.String(), middle.dir+", "+inner.dir; got != want {
		t.Errorf("the cgroup is %s, want %s", got, want)
	}
	whole := openAs(t, hierarchies, pid, strings.TrimPrefix(outer.dir, hierarchies.root()+"/"))
	if !whole.Covers(cgroup) || cgroup.Covers(whole) || !cgroup.Covers(cgroup) {
		t.Error("a part of the cgroups is taken for the whole")
	}
	if v2 {
		if err := cgroup.Allow(context.Background(), deviceA, Read); !errors.Is(err, volume.ErrPrecondition) {
			t.Errorf("below one that denies: %v", err)
		}
		cgroup = whole
	}
	allow(t, cgroup, deviceA, Read|Write)
	inner.wantCan(t, deviceA, "r w rw")
	wantGrants(t, cgroup, Grant{deviceA, Read | Write})
	take(t, cgroup, deviceA)
	for i, one := range []*box{outer, middle, inner} {
		one.wantState(t, before[i])
	}
}

// Programs that never stay for as long as they are looked at are an error, for those
// who ask as for those who change.
func TestReplacedForEver(t *testing.T) {
	box := newV2(t, denial)
	p := programs{ledgerOf(t, box, box.Owner)}
	for _, effective := range []bool{false, true} {
		for name, test := range map[string]struct {
			replaced, want int
			err            error
		}{
			"never":    {0, 1, nil},
			"twice":    {2, 3, nil},
			"for ever": {attempts, attempts, volume.ErrAborted},
		} {
			calls := 0
			err := p.look(effective, func(ids []uint32, _ linux.AttachFlags) error {
				if calls++; calls > test.replaced {
					return nil
				}
				_, err := linux.OpenProgram(1<<32 - 1) // None that the kernel ever loaded.
				return err
			})
			if calls != test.want || !errors.Is(err, test.err) {
				t.Errorf("%s, effective %t: after %d looks: %v", name, effective, calls, err)
			}
		}
	}
}

// Somebody replaces the program all the time. In the end all is as that somebody
// wants it, with or without the grant.
func TestReplacedMeanwhile(t *testing.T) {
	box := newV2(t, denial)
	cgroup := box.open(t)
	dir, err := os.Open(box.dir)
	rig.Must(t, err)
	defer dir.Close()
	other := func(i int) []linux.Instruction {
		return ownRule(linux.DeviceNumber{Major: 9, Minor: uint32(i)}, Read, denial)
	}
	var all sync.WaitGroup
	done := make(chan struct{})
	all.Go(func() {
		defer close(done)
		for i := range 300 {
			ids, _, err := linux.DeviceProgramIDs(dir, false)
			if err != nil || len(ids) != 1 {
				t.Errorf("there are %d programs, %v", len(ids), err)
				return
			}
			program, err := linux.OpenProgram(ids[0])
			if err != nil {
				continue // It was replaced from here.
			}
			err = box.tryAttach("rawblock_test0", other(i), program, linux.AttachMulti)
			program.Close()
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		// It may be that systemd, say, does it again and again: that is said. It may
		// also be replaced once more before it was seen to be granted.
		for _, err := range []error{cgroup.Allow(context.Background(), deviceA, Read), cgroup.Revoke(context.Background(), deviceA)} {
			if err != nil && !errors.Is(err, volume.ErrAborted) && !errors.Is(err, volume.ErrPrecondition) {
				t.Error(err)
			}
		}
	}
	all.Wait()
	take(t, cgroup, deviceA)
	wantGrants(t, cgroup)
	now := box.programs(t)
	if _, had := without(now[0].Instructions, deviceA); had || len(now) != 1 {
		t.Errorf("%d programs are left, of which one has the grant: %t", len(now), had)
	}
	allow(t, cgroup, deviceA, Read)
	take(t, cgroup, deviceA)
	if diff := cmp.Diff(now[0].Tag, box.programs(t)[0].Tag); diff != "" {
		t.Errorf("the last program is another: %s", diff)
	}
}
