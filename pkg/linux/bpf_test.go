package linux_test

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// answer is a program that always answers the same: register 0 is set, and it ends.
func answer(value int32) []linux.Instruction {
	return []linux.Instruction{{Code: 0xb7, Immediate: value}, {Code: 0x95}}
}

// newCgroup makes a cgroup of cgroup v2 until the test ends, where that is mounted
// or by mounting it.
func newCgroup(t *testing.T) *os.File {
	t.Helper()
	rig.RequireRoot(t)
	root := t.TempDir()
	rig.Must(t, unix.Mount("rawblock-test", root, "cgroup2", 0, ""))
	t.Cleanup(func() { rig.UnmountAll(t, root) })
	path, err := os.MkdirTemp(root, "rawblock-test-")
	rig.Must(t, err)
	t.Cleanup(func() { rig.Must(t, os.Remove(path)) })
	dir, err := os.Open(path)
	rig.Must(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

func load(t *testing.T, name string, value int32) *linux.Program {
	t.Helper()
	program, err := linux.LoadDeviceProgram(name, true, answer(value))
	rig.Must(t, err)
	t.Cleanup(program.Close)
	return program
}

func programIDs(t *testing.T, cgroup *os.File) ([]uint32, linux.AttachFlags) {
	t.Helper()
	ids, flags, err := linux.DeviceProgramIDs(cgroup, false)
	rig.Must(t, err)
	return ids, flags
}

func TestLoadDeviceProgram(t *testing.T) {
	rig.RequireRoot(t)
	program := load(t, "rawblock_test", 1)
	if program.Name != "rawblock_test" || !program.GPL || program.Maps != 0 || program.ID == 0 || !slices.Equal(program.Instructions, answer(1)) {
		t.Errorf("loaded is %+v", program)
	}
	again, err := linux.OpenProgram(program.ID)
	rig.Must(t, err)
	defer again.Close()
	if again.Tag != program.Tag || again.Tag == ([8]byte{}) || again.ID != program.ID || !slices.Equal(again.Instructions, program.Instructions) {
		t.Errorf("opened is %+v, loaded was %+v", again, program)
	}
	// The tag is that of the instructions, whatever else is another.
	other, err := linux.LoadDeviceProgram("another", false, answer(1))
	rig.Must(t, err)
	defer other.Close()
	if other.Tag != program.Tag || other.ID == program.ID || other.GPL {
		t.Errorf("another with the same instructions is %+v", other)
	}
	if different := load(t, "rawblock_test", 0); different.Tag == program.Tag {
		t.Error("another program has the same tag")
	}
	long, err := linux.LoadDeviceProgram("rawblock_0123456789", true, answer(1))
	rig.Must(t, err)
	defer long.Close()
	if long.Name != "rawblock_012345" {
		t.Errorf("a long name becomes %q", long.Name)
	}
}

// The verifier lets no program pass that may do harm, or does not make sense.
func TestLoadRefused(t *testing.T) {
	rig.RequireRoot(t)
	for name, test := range map[string]struct {
		program []linux.Instruction
		want    error
	}{
		"nothing":            {nil, syscall.E2BIG},
		"no end":             {[]linux.Instruction{{Code: 0xb7}}, syscall.EINVAL},
		"no answer":          {[]linux.Instruction{{Code: 0x95}}, syscall.EACCES},
		"an answer too big":  {answer(7), syscall.EINVAL},
		"memory":             {[]linux.Instruction{{Code: 0x61, Registers: 0x10, Offset: 4096}, {Code: 0x95}}, syscall.EACCES},
		"an endless loop":    {[]linux.Instruction{{Code: 0x05, Offset: -1}}, syscall.EINVAL},
		"unknown operations": {[]linux.Instruction{{Code: 0xff}, {Code: 0x95}}, syscall.EINVAL},
	} {
		program, err := linux.LoadDeviceProgram("rawblock_test", true, test.program)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if err == nil {
			program.Close()
		}
	}
}

// A program is gone with its last holder.
func TestProgramIsGone(t *testing.T) {
	rig.RequireRoot(t)
	program, err := linux.LoadDeviceProgram("rawblock_test", true, answer(1))
	rig.Must(t, err)
	program.Close()
	for range 100 {
		var again *linux.Program
		if again, err = linux.OpenProgram(program.ID); err != nil {
			break
		}
		again.Close() // It is freed a moment later.
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opening it: %v", err)
	}
}

func TestAttachDeviceProgram(t *testing.T) {
	cgroup := newCgroup(t)
	if ids, _ := programIDs(t, cgroup); len(ids) > 0 {
		t.Errorf("a new cgroup has the programs %v", ids)
	}
	first, second, third := load(t, "rawblock_test1", 1), load(t, "rawblock_test2", 1), load(t, "rawblock_test3", 0)
	rig.Must(t, linux.AttachDeviceProgram(cgroup, first, nil, linux.AttachMulti))
	rig.Must(t, linux.AttachDeviceProgram(cgroup, second, nil, linux.AttachMulti))
	rig.Must(t, linux.AttachDeviceProgram(cgroup, third, first, linux.AttachMulti))
	ids, flags := programIDs(t, cgroup)
	if !slices.Equal(ids, []uint32{third.ID, second.ID}) || flags != linux.AttachMulti {
		t.Errorf("attached are %v with flags %#x, want %d and %d", ids, flags, third.ID, second.ID)
	}
	if err := linux.AttachDeviceProgram(cgroup, load(t, "rawblock_test4", 1), first, linux.AttachMulti); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in the place of one that is not attached: %v", err)
	}

	// Those of the cgroups above run as well.
	below := cgroup.Name() + "/below"
	rig.Must(t, os.Mkdir(below, 0o755))
	defer os.Remove(below)
	inner, err := os.Open(below)
	rig.Must(t, err)
	defer inner.Close()
	fourth := load(t, "rawblock_test4", 1)
	rig.Must(t, linux.AttachDeviceProgram(inner, fourth, nil, linux.AttachMulti))
	effective, _, err := linux.DeviceProgramIDs(inner, true)
	slices.Sort(effective)
	if want := []uint32{second.ID, third.ID, fourth.ID}; err != nil || !slices.Equal(effective, want) {
		t.Errorf("in effect are %v, %v; want %v", effective, err, want)
	}
	if ids, _ := programIDs(t, inner); !slices.Equal(ids, []uint32{fourth.ID}) {
		t.Errorf("attached are %v", ids)
	}
}

// Without AttachMulti there is one place only.
func TestAttachAlone(t *testing.T) {
	const override linux.AttachFlags = unix.BPF_F_ALLOW_OVERRIDE
	for _, flags := range []linux.AttachFlags{0, override} {
		cgroup := newCgroup(t)
		first, second := load(t, "rawblock_test1", 1), load(t, "rawblock_test2", 0)
		rig.Must(t, linux.AttachDeviceProgram(cgroup, first, nil, flags))
		rig.Must(t, linux.AttachDeviceProgram(cgroup, second, first, flags))
		if ids, its := programIDs(t, cgroup); !slices.Equal(ids, []uint32{second.ID}) || its != flags {
			t.Errorf("attached are %v with flags %#x", ids, its)
		}
	}
}

// There may be more programs than there is room for at first.
func TestManyPrograms(t *testing.T) {
	cgroup := newCgroup(t)
	var want []uint32
	for range 40 {
		program := load(t, "rawblock_test", 1)
		rig.Must(t, linux.AttachDeviceProgram(cgroup, program, nil, linux.AttachMulti))
		want = append(want, program.ID)
		if ids, flags := programIDs(t, cgroup); !slices.Equal(ids, want) || flags != linux.AttachMulti {
			t.Fatalf("attached are %v with flags %#x, want %v", ids, flags, want)
		}
	}
	effective, _, err := linux.DeviceProgramIDs(cgroup, true)
	if err != nil || len(effective) < len(want) {
		t.Errorf("in effect are %v, %v", effective, err)
	}
}

func TestNotACgroup(t *testing.T) {
	rig.RequireRoot(t)
	for _, path := range []string{t.TempDir(), newFile(t, t.TempDir()+"/file")} {
		file, err := os.Open(path)
		rig.Must(t, err)
		defer file.Close()
		if ids, _, err := linux.DeviceProgramIDs(file, false); !errors.Is(err, syscall.EBADF) {
			t.Errorf("%s has the programs %v, %v", path, ids, err)
		}
	}
	// A cgroup that was removed is not there, though a descriptor of it is.
	cgroup := newCgroup(t)
	below := cgroup.Name() + "/below"
	rig.Must(t, os.Mkdir(below, 0o755))
	dir, err := os.Open(below)
	rig.Must(t, err)
	defer dir.Close()
	rig.Must(t, os.Remove(below))
	if ids, _, err := linux.DeviceProgramIDs(dir, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that was removed has the programs %v, %v", ids, err)
	}
}
