package devcgroup

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Devices that no machine has: the kernel gives no driver a number from 512 on
// (BLKDEV_MAJOR_MAX in block/genhd.c). Opening them tells what the device cgroup says
// of it, and does nothing else.
var (
	deviceA = linux.DeviceNumber{Major: 600, Minor: 3}
	deviceB = linux.DeviceNumber{Major: 259, Minor: 1<<20 - 1}
	deviceC = linux.DeviceNumber{Major: 1<<12 - 1, Minor: 0}
)

// denial is a program that lets nothing pass.
var denial = []linux.Instruction{{Code: opMove}, {Code: opExit}}

// approval is a program that lets everything pass.
var approval = []linux.Instruction{{Code: opMove, Immediate: 1}, {Code: opExit}}

// rules of a container's own for a device, as a runtime would write them: like a
// block, but without its mark.
func ownRule(number linux.DeviceNumber, access Access, rest []linux.Instruction) []linux.Instruction {
	return append(newBlock(number, access)[1:], rest...)
}

func join(programs ...[]linux.Instruction) []linux.Instruction { return slices.Concat(programs...) }

// Blocks that a plugin wrote are read by all later ones: their form must not change.
func TestBlock(t *testing.T) {
	const want = `
b7 r0 r0 +0 0x52424c4b
61 r2 r1 +0 0x0
bf r3 r2 +0 0x0
57 r3 r0 +0 0xffff
55 r3 r0 +9 0x1
77 r2 r0 +0 0x10
57 r2 r0 +0 -0x7
55 r2 r0 +6 0x0
61 r2 r1 +4 0x0
55 r2 r0 +4 0x103
61 r2 r1 +8 0x0
55 r2 r0 +2 0xfffff
b7 r0 r0 +0 0x1
95 r0 r0 +0 0x0
`
	var got strings.Builder
	got.WriteString("\n")
	for _, one := range newBlock(deviceB, Read|Write) {
		fmt.Fprintf(&got, "%02x r%d r%d %+d %#x\n", one.Code, one.Registers&0xf, one.Registers>>4, one.Offset, one.Immediate)
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("the block (-want +got):\n%s", diff)
	}
}

func TestParseBlock(t *testing.T) {
	for _, number := range []linux.DeviceNumber{deviceA, deviceB, deviceC, {}} {
		for access := range allAccess + 1 {
			grant, ok := parseBlock(join(newBlock(number, access), denial))
			if want := (Grant{number, access}); !ok || grant != want {
				t.Errorf("%v is read as %v, %t", want, grant, ok)
			}
		}
	}
	block := newBlock(deviceA, Read)
	for i := range block {
		changed := slices.Clone(block)
		changed[i].Registers ^= 1
		if _, ok := parseBlock(changed); ok {
			t.Errorf("a block with another instruction %d is taken for one", i)
		}
	}
	for name, program := range map[string][]linux.Instruction{
		"nothing": nil, "too short": block[:blockLen-1], "a rule of the container's": ownRule(deviceA, Read, denial),
	} {
		if _, ok := parseBlock(program); ok {
			t.Errorf("%s is taken for a block", name)
		}
	}
}

func TestWithout(t *testing.T) {
	a, b, own := newBlock(deviceA, Read), newBlock(deviceB, Read|Write), ownRule(deviceA, Read, denial)
	type result struct {
		Rest []linux.Instruction
		Had  bool
	}
	for name, test := range map[string]struct {
		program []linux.Instruction
		want    result
	}{
		"none":              {own, result{own, false}},
		"one":               {join(a, own), result{own, true}},
		"another's":         {join(b, own), result{join(b, own), false}},
		"first":             {join(a, b, own), result{join(b, own), true}},
		"last":              {join(b, a, own), result{join(b, own), true}},
		"twice":             {join(a, b, a, own), result{join(b, own), true}},
		"after the program": {join(own, a), result{join(own, a), false}},
		"empty":             {nil, result{nil, false}},
	} {
		before := slices.Clone(test.program)
		rest, had := without(test.program, deviceA)
		if diff := cmp.Diff(test.want, result{rest, had}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if !slices.Equal(before, test.program) {
			t.Errorf("%s: the program itself was changed", name)
		}
	}
}
