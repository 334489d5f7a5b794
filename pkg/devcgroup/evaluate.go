package devcgroup

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// errUnknown says that a program does what cannot be followed here.
var errUnknown = errors.New("the device program cannot be followed")

// maxSteps bounds a program, which may have a loop.
const maxSteps = 1 << 20

// The classes of instructions, and where an operand comes from
// (Documentation/bpf/standardization/instruction-set.rst in the kernel).
const (
	classLoadImmediate = 0x00
	classLoad          = 0x01
	classALU32         = 0x04
	classJump          = 0x05
	classJump32        = 0x06
	classALU64         = 0x07

	classMask  = 0x07
	fromSource = 0x08

	loadImmediate64 = 0x18
)

// hiddenRegister is BPF_REG_AX of linux/filter.h. The kernel uses it where it
// hides the constants of programs (net.core.bpf_jit_harden), and lets nobody else.
const hiddenRegister = 11

// argAddress is the address that the argument of the program has here. No program
// can know where it really is.
const argAddress = 1 << 40

// machine runs a device program on an argument, as the kernel does.
type machine struct {
	// registers are those of a program, and the one that the kernel keeps for itself
	// (hiddenRegister).
	registers [hiddenRegister + 1]uint64
	argument  [argSize]byte
}

// decide returns what a program says of an access to a block device: whether it
// lets it pass. Programs that call the kernel or use its memory are not followed;
// those of runc, crun and systemd do neither.
func decide(program []linux.Instruction, number linux.DeviceNumber, access Access) (bool, error) {
	m := &machine{}
	m.registers[1] = argAddress
	binary.NativeEndian.PutUint32(m.argument[argAccessType:], uint32(access)<<16|typeBlock)
	binary.NativeEndian.PutUint32(m.argument[argMajor:], number.Major)
	binary.NativeEndian.PutUint32(m.argument[argMinor:], number.Minor)
	at := 0
	for range maxSteps {
		if at < 0 || at >= len(program) {
			return false, fmt.Errorf("%w: it leaves its %d instructions", errUnknown, len(program))
		}
		instruction := program[at] //nolint:gosec // It is one of them.
		if instruction.Code == opExit {
			// The lowest bit counts (bpf_prog_run_array_cg in kernel/bpf/cgroup.c).
			return m.registers[0]&1 != 0, nil
		}
		jump, err := m.step(program, at)
		if err != nil {
			return false, fmt.Errorf("%w: instruction %d: %w", errUnknown, at, err)
		}
		at += 1 + jump
	}
	return false, fmt.Errorf("%w: it does not end", errUnknown)
}

// step runs an instruction, and returns how many to pass over.
func (m *machine) step(program []linux.Instruction, at int) (jump int, err error) {
	instruction := program[at]
	to, from := instruction.Registers&0xf, instruction.Registers>>4
	if int(to) >= len(m.registers) || int(from) >= len(m.registers) {
		return 0, errors.New("no such register")
	}
	operand := uint64(int64(instruction.Immediate)) //nolint:gosec // Extended by its sign.
	if instruction.Code&fromSource != 0 {
		operand = m.registers[from]
	}
	value, class := m.registers[to], instruction.Code&classMask
	if instruction.Offset != 0 && (class == classALU64 || class == classALU32) {
		return 0, errors.New("it calculates with signs")
	}
	switch class {
	case classALU64:
		m.registers[to], err = calculate(instruction.Code&0xf0, value, operand, 64)
	case classALU32:
		m.registers[to], err = calculate(instruction.Code&0xf0, uint64(uint32(value)), uint64(uint32(operand)), 32) //nolint:gosec // The lower half.
	case classLoad:
		m.registers[to], err = m.load(instruction.Code, m.registers[from]+uint64(int64(instruction.Offset))) //nolint:gosec // Extended by its sign.
	case classLoadImmediate:
		if instruction.Code != loadImmediate64 || from != 0 || at+1 >= len(program) {
			return 0, errors.New("it uses a map or a packet")
		}
		m.registers[to] = uint64(uint32(instruction.Immediate)) | uint64(uint32(program[at+1].Immediate))<<32 //nolint:gosec // Two halves.
		return 1, nil
	case classJump:
		return compare(instruction, value, operand)
	case classJump32:
		// Extended by their signs, both compare as they do in 32 bits.
		return compare(instruction, uint64(int64(int32(value))), uint64(int64(int32(operand)))) //nolint:gosec // The lower half.
	default:
		err = fmt.Errorf("operation %#x", instruction.Code)
	}
	return 0, err
}

// load reads the argument: 4, 2, 1 or 8 bytes.
func (m *machine) load(code uint8, address uint64) (uint64, error) {
	const mode, memory = 0xe0, 0x60
	size := [...]uint64{4, 2, 1, 8}[code&0x18>>3]
	offset := address - argAddress
	if code&mode != memory || offset > argSize || offset+size > argSize {
		return 0, errors.New("it reads memory other than its argument")
	}
	part := m.argument[offset : offset+size]
	switch size {
	case 1:
		return uint64(part[0]), nil
	case 2:
		return uint64(binary.NativeEndian.Uint16(part)), nil
	case 4:
		return uint64(binary.NativeEndian.Uint32(part)), nil
	default:
		return binary.NativeEndian.Uint64(part), nil
	}
}

// calculate runs an operation on numbers of 32 or 64 bits.
func calculate(operation uint8, a, b uint64, width int) (uint64, error) {
	shift := b & uint64(width-1) //nolint:gosec // 31 or 63.
	var result uint64
	switch operation {
	case 0x00:
		result = a + b
	case 0x10:
		result = a - b
	case 0x20:
		result = a * b
	case 0x40:
		result = a | b
	case 0x50:
		result = a & b
	case 0x60:
		result = a << shift
	case 0x70:
		result = a >> shift
	case 0x80:
		result = -a
	case 0xa0:
		result = a ^ b
	case 0xb0:
		result = b
	case 0xc0:
		result = uint64(int64(a) >> shift) //nolint:gosec // By its sign.
		if width == 32 {
			result = uint64(uint32(int32(a) >> shift)) //nolint:gosec // By its sign.
		}
	default:
		return 0, fmt.Errorf("calculation %#x", operation)
	}
	if width == 32 {
		result &= 1<<32 - 1
	}
	return result, nil
}

// compare returns how far a jump goes.
func compare(instruction linux.Instruction, a, b uint64) (int, error) {
	signedA, signedB := int64(a), int64(b) //nolint:gosec // By their signs.
	var holds bool
	switch instruction.Code & 0xf0 {
	case 0x00:
		if instruction.Code&classMask == classJump32 {
			return 0, errors.New("a long jump")
		}
		holds = true
	case 0x10:
		holds = a == b
	case 0x20:
		holds = a > b
	case 0x30:
		holds = a >= b
	case 0x40:
		holds = a&b != 0
	case 0x50:
		holds = a != b
	case 0x60:
		holds = signedA > signedB
	case 0x70:
		holds = signedA >= signedB
	case 0x80:
		return 0, errors.New("it calls a function")
	case 0xa0:
		holds = a < b
	case 0xb0:
		holds = a <= b
	case 0xc0:
		holds = signedA < signedB
	case 0xd0:
		holds = signedA <= signedB
	default:
		return 0, fmt.Errorf("jump %#x", instruction.Code)
	}
	if holds {
		return int(instruction.Offset), nil
	}
	return 0, nil
}
