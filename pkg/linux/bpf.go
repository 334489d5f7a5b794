package linux

import (
	"bytes"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Instruction is one instruction of a BPF program, as in struct bpf_insn of
// linux/bpf.h.
type Instruction struct {
	// Code is the operation.
	Code uint8
	// Registers are the destination in the lower and the source in the upper four
	// bits; the other way round on big-endian machines.
	Registers uint8
	Offset    int16
	Immediate int32
}

// instructionSize is the size of an instruction in bytes.
const instructionSize = 8

// Program is a BPF program that is loaded. It is held by a descriptor.
type Program struct {
	fd int
	// ID is the number that the kernel gave it. A program has one for as long as
	// it is loaded.
	ID uint32
	// Tag is the hash of its instructions.
	Tag [8]byte
	// Name is what its loader called it: at most 15 bytes.
	Name string
	// Maps is how many maps it uses.
	Maps int
	// GPL says that its license is compatible with the kernel's.
	GPL bool
	// Instructions are what the kernel's verifier made of it.
	Instructions []Instruction
}

// Close lets the program go. What is attached stays loaded.
func (p *Program) Close() {
	unix.Close(p.fd) //nolint:errcheck,gosec // Linux closes it in any case (close(2)).
	p.fd = -1
}

// AttachFlags are how programs are attached to a cgroup: they decide what may be
// attached besides, and below.
type AttachFlags uint32

// AttachMulti lets several programs be attached, and run, side by side.
const AttachMulti AttachFlags = unix.BPF_F_ALLOW_MULTI

// DeviceProgramIDs returns the IDs of the device programs that are attached to a
// cgroup, and how. With effective, it returns those that run for its processes:
// those of the cgroups above as well, without flags.
func DeviceProgramIDs(cgroup Descriptor, effective bool) ([]uint32, AttachFlags, error) {
	for count := uint32(16); ; {
		ids := make([]uint32, count)
		// Kernels from 6.17 on wrote the revision whatever size they were told, until
		// that was mended in their later releases (__cgroup_bpf_query in
		// kernel/bpf/cgroup.c). What follows is room for fields to come.
		var attr struct {
			target, attachType, queryFlags, attachFlags uint32
			ids                                         uint64
			count, _                                    uint32
			programFlags, links, linkFlags, revision    uint64
			_                                           [128]byte
		}
		attr.target, attr.attachType = uint32(cgroup.Fd()), unix.BPF_CGROUP_DEVICE //nolint:gosec // Descriptors are small.
		attr.ids, attr.count = address(&ids[0]), count
		if effective {
			attr.queryFlags = unix.BPF_F_QUERY_EFFECTIVE
		}
		const size = 64 // To the end of revision.
		_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), size)
		runtime.KeepAlive(ids)
		if err == unix.ENOSPC { //nolint:errorlint // A raw errno, straight from the system call.
			count = attr.count + 16
			continue
		}
		if err != nil {
			return nil, 0, &os.PathError{Op: "bpf: query device programs", Path: cgroup.Name(), Err: err}
		}
		return ids[:attr.count], AttachFlags(attr.attachFlags), nil
	}
}

// OpenProgram opens the program with the ID. It fails with ENOENT where there is
// none.
func OpenProgram(id uint32) (*Program, error) {
	attr := struct{ id, next, flags uint32 }{id: id}
	fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil, os.NewSyscallError("bpf: open program", err)
	}
	program := &Program{fd: fd}
	if err := program.describe(); err != nil {
		program.Close()
		return nil, err
	}
	return program, nil
}

// programInfo is the beginning of struct bpf_prog_info of linux/bpf.h.
type programInfo struct {
	_             uint32 // type
	id            uint32
	tag           [8]byte
	_             uint32 // jited_prog_len
	translatedLen uint32
	_             uint64 // jited_prog_insns
	translated    uint64
	_             uint64 // load_time
	_             uint32 // created_by_uid
	maps          uint32
	_             uint64 // map_ids
	name          [16]byte
	_             uint32 // ifindex
	isGPL         uint32 // A bit, and padding.
	_             uint64 // netns_dev
	_             uint64 // netns_ino
}

// describe asks the kernel what the program is: first how long, then for all.
func (p *Program) describe() error {
	info, err := p.info(nil)
	if err != nil {
		return err
	}
	p.Instructions = make([]Instruction, info.translatedLen/instructionSize)
	if len(p.Instructions) > 0 {
		if info, err = p.info(p.Instructions); err != nil {
			return err
		}
	}
	name, _, _ := bytes.Cut(info.name[:], []byte{0})
	p.ID, p.Tag, p.Name, p.Maps, p.GPL = info.id, info.tag, string(name), int(info.maps), info.isGPL&1 != 0
	return nil
}

func (p *Program) info(into []Instruction) (programInfo, error) {
	var info programInfo
	if len(into) > 0 {
		info.translated, info.translatedLen = address(&into[0]), uint32(len(into)*instructionSize) //nolint:gosec // At most a million.
	}
	attr := struct {
		fd, length uint32
		info       uint64
	}{uint32(p.fd), uint32(unsafe.Sizeof(info)), address(&info)} //nolint:gosec // Descriptors are small.
	_, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(into)
	if err != nil {
		return programInfo{}, os.NewSyscallError("bpf: describe program", err)
	}
	return info, nil
}

// LoadDeviceProgram loads a program that decides on devices. It fails with EACCES
// or EINVAL where the verifier does not let it pass.
func LoadDeviceProgram(name string, gpl bool, instructions []Instruction) (*Program, error) {
	license := []byte("Proprietary\x00")
	if gpl {
		license = []byte("GPL\x00")
	}
	attr := struct {
		kind, count           uint32
		instructions, license uint64
		logLevel, logSize     uint32
		log                   uint64
		kernel, flags         uint32
		name                  [16]byte
		ifindex, attachType   uint32
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, attachType: unix.BPF_CGROUP_DEVICE,
		count:        uint32(len(instructions)), //nolint:gosec // At most a million.
		instructions: address(unsafe.SliceData(instructions)), license: address(&license[0]),
	}
	copy(attr.name[:len(attr.name)-1], name)
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(instructions)
	runtime.KeepAlive(license)
	if err != nil {
		return nil, os.NewSyscallError("bpf: load program", err)
	}
	program := &Program{fd: fd}
	if err := program.describe(); err != nil {
		program.Close()
		return nil, err
	}
	return program, nil
}

// AttachDeviceProgram attaches a program to a cgroup with the flags that the
// programs there have. Where they are AttachMulti, it takes the place of the old
// one, and fails with ENOENT where that is not attached any more; otherwise there
// is one place only.
func AttachDeviceProgram(cgroup Descriptor, program, old *Program, flags AttachFlags) error {
	attr := struct{ target, program, attachType, flags, replaced uint32 }{
		target: uint32(cgroup.Fd()), program: uint32(program.fd), attachType: unix.BPF_CGROUP_DEVICE, flags: uint32(flags), //nolint:gosec // Descriptors are small.
	}
	if flags&AttachMulti != 0 && old != nil {
		attr.flags |= unix.BPF_F_REPLACE
		attr.replaced = uint32(old.fd) //nolint:gosec // Descriptors are small.
	}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return &os.PathError{Op: "bpf: attach device program", Path: cgroup.Name(), Err: err}
	}
	return nil
}

func address[T any](value *T) uint64 { return uint64(uintptr(unsafe.Pointer(value))) }

// bpf is bpf(2). What attr points to must be kept alive by the caller.
func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR, unix.EAGAIN: // The verifier was interrupted by a signal.
		default:
			return 0, errno
		}
	}
}
