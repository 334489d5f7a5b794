package devcgroup

import (
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// A grant in a program is a block of instructions that stands in front of the
// program, and lets the device pass that it is for. Everything else falls through
// to what stood there before, which finds its argument in register 1 as ever. The
// blocks are of one form, so that they are found again without any record.

// Operations of linux/bpf_common.h and linux/bpf.h, as the blocks use them.
const (
	opMove         = 0x07 | 0xb0 // ALU64 | MOV, of an immediate
	opMoveRegister = 0x0f | 0xb0 // ALU64 | MOV, of a register
	opAnd          = 0x07 | 0x50 // ALU64 | AND
	opShiftRight   = 0x07 | 0x70 // ALU64 | RSH
	opLoad         = 0x61        // LDX | MEM | W
	opJumpUnequal  = 0x05 | 0x50 // JMP | JNE, to an immediate
	opExit         = 0x95        // JMP | EXIT
)

// The fields of struct bpf_cgroup_dev_ctx of linux/bpf.h, the argument of a device
// program: offsets in bytes.
const (
	argAccessType = 0 // The access in the upper, the type in the lower 16 bits.
	argMajor      = 4
	argMinor      = 8
	argSize       = 12
)

// typeBlock is BPF_DEVCG_DEV_BLOCK of linux/bpf.h.
const typeBlock = 1

// mark is what a block begins by putting into register 0, which no program reads:
// the letters RBLK.
const mark = 0x52424c4b

// newBlock returns the instructions that let a block device pass for the access, or
// any part of it.
func newBlock(number linux.DeviceNumber, access Access) []linux.Instruction {
	const arg, value, kind = 1, 2, 3
	block := []linux.Instruction{
		{Code: opMove, Registers: 0, Immediate: mark},
		{Code: opLoad, Registers: value | arg<<4, Offset: argAccessType},
		{Code: opMoveRegister, Registers: kind | value<<4},
		{Code: opAnd, Registers: kind, Immediate: 0xffff},
		{Code: opJumpUnequal, Registers: kind, Immediate: typeBlock},
		{Code: opShiftRight, Registers: value, Immediate: 16},
		{Code: opAnd, Registers: value, Immediate: ^int32(access)},
		{Code: opJumpUnequal, Registers: value, Immediate: 0},
		{Code: opLoad, Registers: value | arg<<4, Offset: argMajor},
		{Code: opJumpUnequal, Registers: value, Immediate: int32(number.Major)}, //nolint:gosec // 12 bits.
		{Code: opLoad, Registers: value | arg<<4, Offset: argMinor},
		{Code: opJumpUnequal, Registers: value, Immediate: int32(number.Minor)}, //nolint:gosec // 20 bits.
		{Code: opMove, Registers: 0, Immediate: 1},
		{Code: opExit},
	}
	for i := range block {
		if block[i].Code == opJumpUnequal {
			block[i].Offset = int16(len(block) - i - 1) //nolint:gosec // A few.
		}
	}
	return block
}

// Where the variable parts of a block are.
const (
	blockAccess = 6
	blockMajor  = 9
	blockMinor  = 11
)

// blockLen is the number of instructions of a block.
var blockLen = len(newBlock(linux.DeviceNumber{}, 0))

// parseBlock returns what a program lets pass by the block that it begins with.
func parseBlock(program []linux.Instruction) (grant Grant, ok bool) {
	if len(program) < blockLen {
		return Grant{}, false
	}
	grant = Grant{
		Number: linux.DeviceNumber{Major: uint32(program[blockMajor].Immediate), Minor: uint32(program[blockMinor].Immediate)}, //nolint:gosec // As written by newBlock.
		Access: Access(^program[blockAccess].Immediate),                                                                        //nolint:gosec // As written by newBlock.
	}
	return grant, slices.Equal(program[:blockLen], newBlock(grant.Number, grant.Access))
}

// without returns the program without the blocks for a device, and whether it had
// any. Blocks stand at the beginning, one after the other.
func without(program []linux.Instruction, number linux.DeviceNumber) (rest []linux.Instruction, had bool) {
	var others []linux.Instruction
	for {
		grant, ok := parseBlock(program)
		switch {
		case !ok:
			return append(others, program...), had
		case grant.Number == number:
			had = true
		default:
			others = append(others, program[:blockLen]...)
		}
		program = program[blockLen:]
	}
}
