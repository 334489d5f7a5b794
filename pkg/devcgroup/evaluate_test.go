package devcgroup

import (
	"errors"
	"testing"
	"unsafe"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// How the registers of an instruction are written here: to, from.
func registers(to, from uint8) uint8 { return to | from<<4 }

func TestDecideOnBlocks(t *testing.T) {
	program := join(newBlock(deviceA, Read), newBlock(deviceB, Read|Write), ownRule(deviceC, Write|Mknod, denial))
	for number, allowed := range map[linux.DeviceNumber]Access{
		deviceA: Read, deviceB: Read | Write, deviceC: Write | Mknod,
		{Major: 600, Minor: 4}: 0, {Major: 601, Minor: 3}: 0, {Major: 600, Minor: 259}: 0,
	} {
		for access := Access(1); access <= allAccess; access++ {
			got, err := decide(program, number, access)
			if want := access&^allowed == 0; err != nil || got != want {
				t.Errorf("device %s for %s: %t, %v; want %t", number, access, got, err, want)
			}
		}
	}
}

// What each operation makes of two numbers. The program compares it with what it
// should be, since it can answer yes or no only.
func TestDecideCalculates(t *testing.T) {
	const minusOne = 1<<64 - 1
	for _, test := range []struct {
		name      string
		operation uint8
		a, b      uint64
		want64    uint64
		want32    uint64
	}{
		{"add", 0x00, 1<<32 - 1, 1, 1 << 32, 0},
		{"subtract", 0x10, 0, 1, minusOne, 1<<32 - 1},
		{"multiply", 0x20, 1 << 31, 2, 1 << 32, 0},
		{"or", 0x40, 1 << 40, 1, 1<<40 | 1, 1},
		{"and", 0x50, minusOne, 1<<40 | 6, 1<<40 | 6, 6},
		{"shift left", 0x60, 3, 31, 3 << 31, 1 << 31},
		{"shift left too far", 0x60, 1, 65, 2, 2},
		{"shift right", 0x70, 1<<63 | 1<<31, 4, 1<<59 | 1<<27, 1 << 27},
		{"negate", 0x80, 1, 0, minusOne, 1<<32 - 1},
		{"exclusive or", 0xa0, 0xff, 0x0f, 0xf0, 0xf0},
		{"move", 0xb0, 5, 1<<40 | 7, 1<<40 | 7, 7},
		{"shift right by its sign", 0xc0, 1<<63 | 1<<31, 4, 0xf8<<56 | 1<<27, 0xf8 << 24},
	} {
		for class, want := range map[uint8]uint64{classALU64: test.want64, classALU32: test.want32} {
			program := join(load64(1, test.a), load64(2, test.b), load64(3, want), []linux.Instruction{
				{Code: class | fromSource | test.operation, Registers: registers(1, 2)},
				{Code: opMove},
				{Code: classJump | fromSource | 0x50, Registers: registers(1, 3), Offset: 1},
				{Code: opMove, Immediate: 1},
				{Code: opExit},
			})
			if right, err := decide(program, deviceA, Read); err != nil || !right {
				t.Errorf("%s, class %#x: %t, %v", test.name, class, right, err)
			}
		}
	}
}

func load64(register uint8, value uint64) []linux.Instruction {
	return []linux.Instruction{{Code: loadImmediate64, Registers: register, Immediate: int32(value)}, {Immediate: int32(value >> 32)}}
}

func TestDecideCompares(t *testing.T) {
	const minusOne = 1<<64 - 1
	for _, test := range []struct {
		operation  uint8
		a, b       uint64
		holds      bool
		holdsIn32s bool
	}{
		{0x10, 5, 5, true, true},
		{0x10, 1<<32 | 5, 5, false, true},
		{0x20, 1 << 32, 1, true, false},
		{0x20, minusOne, 1, true, true},
		{0x30, 5, 5, true, true},
		{0x40, 1 << 32, 1 << 32, true, false},
		{0x40, 6, 2, true, true},
		{0x40, 6, 1, false, false},
		{0x50, 1 << 32, 0, true, false},
		{0x60, minusOne, 1, false, false},
		{0x60, 1<<31 - 1, minusOne, true, true},
		{0x70, minusOne, minusOne, true, true},
		{0xa0, 1, minusOne, true, true},
		{0xa0, 1<<31 - 1, 1 << 31, true, true},
		{0xb0, 5, 5, true, true},
		{0xc0, minusOne, 0, true, true},
		{0xc0, 1 << 31, 0, false, true},
		{0xd0, 0, 0, true, true},
	} {
		for class, want := range map[uint8]bool{classJump: test.holds, classJump32: test.holdsIn32s} {
			program := join(load64(1, test.a), load64(2, test.b), []linux.Instruction{
				{Code: opMove, Immediate: 1},
				{Code: class | fromSource | test.operation, Registers: registers(1, 2), Offset: 1},
				{Code: opMove},
				{Code: opExit},
			})
			if got, err := decide(program, deviceA, Read); err != nil || got != want {
				t.Errorf("jump %#x of %#x and %#x: %t, %v; want %t", class|test.operation, test.a, test.b, got, err, want)
			}
		}
	}
}

func TestDecideOnSigns(t *testing.T) {
	// An immediate is extended by its sign, and -2 has the lowest bit clear.
	for immediate, want := range map[int32]bool{1: true, 0: false, -1: true, -2: false, 3: true} {
		program := []linux.Instruction{{Code: opMove, Immediate: immediate}, {Code: opExit}}
		if got, err := decide(program, deviceA, Read); err != nil || got != want {
			t.Errorf("answer %d: %t, %v", immediate, got, err)
		}
	}
}

// The argument is read in parts, too.
func TestDecideLoads(t *testing.T) {
	for name, test := range map[string]struct {
		load linux.Instruction
		want int32
	}{
		"type in two bytes": {linux.Instruction{Code: 0x69, Registers: registers(2, 1)}, typeBlock},
		"type in one byte":  {linux.Instruction{Code: 0x71, Registers: registers(2, 1)}, typeBlock},
		"access":            {linux.Instruction{Code: 0x69, Registers: registers(2, 1), Offset: 2}, int32(Read | Write)},
		"major":             {linux.Instruction{Code: opLoad, Registers: registers(2, 1), Offset: argMajor}, 600},
		"minor":             {linux.Instruction{Code: opLoad, Registers: registers(2, 1), Offset: argMinor}, 3},
	} {
		program := []linux.Instruction{
			test.load,
			{Code: opMove},
			{Code: opJumpUnequal, Registers: 2, Offset: 1, Immediate: test.want},
			{Code: opMove, Immediate: 1},
			{Code: opExit},
		}
		if right, err := decide(program, deviceA, Read|Write); err != nil || !right {
			t.Errorf("%s: %t, %v", name, right, err)
		}
	}
}

// What is not known for sure is not said.
func TestDecideRefuses(t *testing.T) {
	for name, program := range map[string][]linux.Instruction{
		"nothing":                    {},
		"no end":                     {{Code: opMove}},
		"an endless loop":            {{Code: classJump, Offset: -1}},
		"a loop":                     {{Code: opMove}, {Code: classJump, Offset: -2}},
		"a jump out of it":           {{Code: classJump, Offset: 7}},
		"a jump before it":           {{Code: classJump, Offset: -2}},
		"a call":                     {{Code: 0x85, Immediate: 7}, {Code: opExit}},
		"a long jump":                {{Code: classJump32}, {Code: opExit}},
		"a map":                      {{Code: loadImmediate64, Registers: registers(2, 1)}, {}, {Code: opExit}},
		"half an instruction":        {{Code: loadImmediate64}},
		"a jump into an instruction": {{Code: classJump, Offset: 1}, {Code: loadImmediate64}, {}, {Code: opExit}},
		"a store":                    {{Code: 0x63, Registers: 10}, {Code: opExit}},
		"an atomic operation":        {{Code: 0xdb, Registers: 10}, {Code: opExit}},
		"memory":                     {{Code: opLoad, Registers: registers(2, 10), Offset: -8}, {Code: opExit}},
		"more than the argument":     {{Code: 0x79, Registers: registers(2, 1), Offset: 8}, {Code: opExit}},
		"before the argument":        {{Code: opLoad, Registers: registers(2, 1), Offset: -4}, {Code: opExit}},
		"a packet":                   {{Code: 0x20}, {Code: opExit}},
		"a load by its sign":         {{Code: 0x81, Registers: registers(2, 1)}, {Code: opExit}},
		"a division":                 {{Code: classALU64 | 0x30, Immediate: 1}, {Code: opExit}},
		"a move by its sign":         {{Code: opMoveRegister, Registers: registers(2, 1), Offset: 8}, {Code: opExit}},
		"no such register":           {{Code: opMove, Registers: 12}, {Code: opExit}},
		"an unknown jump":            {{Code: classJump | 0xe0}, {Code: opExit}},
		"an unknown calculation":     {{Code: classALU64 | 0xf0}, {Code: opExit}},
		"a swap of bytes":            {{Code: classALU32 | 0xd0, Immediate: 16}, {Code: opExit}},
	} {
		if allowed, err := decide(program, deviceA, Read); !errors.Is(err, errUnknown) || allowed {
			t.Errorf("%s: %t, %v", name, allowed, err)
		}
	}
}

// FuzzDecide looks for a program that is not followed to an end.
func FuzzDecide(f *testing.F) {
	for _, program := range [][]linux.Instruction{join(newBlock(deviceA, Read), denial), load64(1, 1), {{Code: classJump, Offset: -1}}} {
		f.Add(bytesOf(program), uint32(7), uint32(3), uint8(Read))
	}
	f.Fuzz(func(t *testing.T, data []byte, major, minor uint32, access uint8) {
		program := programOf(data)
		number := linux.DeviceNumber{Major: major, Minor: minor}
		allowed, err := decide(program, number, Access(access))
		if err != nil && allowed {
			t.Error("it is said to be allowed, and that it is not known")
		}
		without(program, number)
		// Whatever follows, the block lets its device pass, and is found again.
		if access := Access(access) & allAccess; access != 0 {
			longer := join(newBlock(number, access), program)
			if allowed, err := decide(longer, number, access); err != nil || !allowed {
				t.Errorf("with a block in front: %t, %v", allowed, err)
			}
			if _, had := without(longer, number); !had {
				t.Error("the block is not found")
			}
		}
	})
}

const instructionSize = int(unsafe.Sizeof(linux.Instruction{}))

func bytesOf(program []linux.Instruction) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&program[0])), len(program)*instructionSize)
}

func programOf(data []byte) []linux.Instruction {
	program := make([]linux.Instruction, len(data)/instructionSize)
	if len(program) > 0 {
		copy(bytesOf(program), data)
	}
	return program
}
