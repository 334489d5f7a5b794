package devcgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// programs is a cgroup of cgroup v2: device programs are attached to it.
type programs struct{ ledger }

func newPrograms(ledger ledger) dir { return programs{ledger} }

func (p programs) grants() ledger { return p.ledger }

// allows: all programs that run for the cgroup must let it pass, those of the
// cgroups above as well (cgroup_bpf_attach in kernel/bpf/cgroup.c).
func (p programs) allows(number linux.DeviceNumber, access Access) (allowed bool, err error) {
	const effective = true
	err = p.look(effective, func(ids []uint32, _ linux.AttachFlags) error {
		allowed, err = p.allAllow(ids, number, access)
		return err
	})
	return allowed, err
}

func (p programs) allAllow(ids []uint32, number linux.DeviceNumber, access Access) (bool, error) {
	for _, id := range ids {
		program, err := linux.OpenProgram(id)
		if err != nil {
			return false, fmt.Errorf("see what the container may open: %w", err)
		}
		allowed, err := decide(program.Instructions, number, access)
		program.Close()
		if err != nil {
			return false, fmt.Errorf("see what the container may open by program %d (%s) of %s: %w: %w", id, program.Name, p.file.Name(), volume.ErrPrecondition, err)
		}
		if !allowed {
			return false, nil
		}
	}
	return true, nil
}

func (p programs) allow(ctx context.Context, number linux.DeviceNumber, access Access) error {
	access, err := p.add(number, access)
	if err != nil {
		return err
	}
	if err := p.allowInUnit(ctx, number, access); err != nil {
		return err
	}
	return p.change(number, access)
}

func (p programs) revoke(ctx context.Context, number linux.DeviceNumber, _ Access) error {
	if err := restoreUnit(ctx, p.ledger, number); err != nil {
		return err
	}
	return p.change(number, 0)
}

// isOfSystemd reports whether a program is one that systemd makes, by what its units
// say, and replaces as it likes (src/core/bpf-devices.c in systemd). Changed behind
// its back, the grant is lost with the next one, and the changed program stays
// attached forever, since systemd detaches only what it knows.
func isOfSystemd(program *linux.Program) bool { return strings.HasPrefix(program.Name, "sd_devices") }

// allowInUnit has systemd let the device pass where the cgroup is a unit's. There need
// not be a program of its now: runc puts its own in the place of it, and systemd makes
// another when it is reloaded.
func (p programs) allowInUnit(ctx context.Context, number linux.DeviceNumber, access Access) error {
	unit, err := openUnit(ctx, p.path)
	if unit != nil {
		defer unit.conn.Close()
		return unit.widen(ctx, p.ledger, number, access)
	}
	var refusing *linux.Program
	if eachErr := p.each(func(program *linux.Program, _ linux.AttachFlags) error {
		if isOfSystemd(program) && !allows(program.Instructions, number, access) {
			refusing = program
		}
		return nil
	}); eachErr != nil {
		return eachErr
	}
	if refusing == nil {
		if err != nil {
			klog.FromContext(ctx).Info("What is granted is lost when systemd is reloaded", "cgroup", p.file.Name(), "reason", err.Error())
		}
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%w: it was made by a systemd that does not run this machine", volume.ErrPrecondition)
	}
	return fmt.Errorf("change device program %d (%s) of %s: %w", refusing.ID, refusing.Name, p.file.Name(), err)
}

// change has each program of the cgroup that is not systemd's let the device pass for
// the access, 0 for as much as it did by itself.
func (p programs) change(number linux.DeviceNumber, access Access) error {
	return p.each(func(old *linux.Program, flags linux.AttachFlags) error {
		own, had := without(old.Instructions, number)
		switch {
		case access == 0 && !had, access != 0 && (isOfSystemd(old) || allows(old.Instructions, number, access)):
			return nil
		case access == 0:
			return p.replace(old, own, flags)
		default:
			return p.replace(old, append(newBlock(number, access), own...), flags)
		}
	})
}

// attempts is how often programs may be replaced by somebody else while they are
// being looked at here.
const attempts = 10

// look calls do with the programs of the cgroup, or those in effect for it, and anew
// where one is not attached any more (fs.ErrNotExist). Errors: volume.ErrAborted where
// that happens again and again.
func (p programs) look(effective bool, do func([]uint32, linux.AttachFlags) error) error {
	for range attempts {
		ids, flags, err := linux.DeviceProgramIDs(p.file, effective)
		if err != nil {
			return fmt.Errorf("find the device programs of the container: %w", err)
		}
		if err := do(ids, flags); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%w: the device programs of %s are being replaced again and again, or are attached by a link, which only its owner can change", volume.ErrAborted, p.file.Name())
}

// each calls do for each program of the cgroup, and for all anew where one is not
// attached any more.
func (p programs) each(do func(*linux.Program, linux.AttachFlags) error) error {
	return p.look(false, func(ids []uint32, flags linux.AttachFlags) error {
		for _, id := range ids {
			if err := p.doWith(id, flags, do); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p programs) doWith(id uint32, flags linux.AttachFlags, do func(*linux.Program, linux.AttachFlags) error) error {
	program, err := linux.OpenProgram(id)
	if err != nil {
		return fmt.Errorf("open device program %d of the container: %w", id, err)
	}
	defer program.Close()
	if err := do(program, flags); err != nil {
		return fmt.Errorf("change device program %d (%s) of %s: %w", id, program.Name, p.file.Name(), err)
	}
	return nil
}

// allows reports whether a program is known to let the device pass.
func allows(program []linux.Instruction, number linux.DeviceNumber, access Access) bool {
	allowed, err := decide(program, number, access)
	return err == nil && allowed
}

// replace attaches a program in place of the old one that is the same but for its
// instructions.
func (p programs) replace(old *linux.Program, instructions []linux.Instruction, flags linux.AttachFlags) error {
	if err := checkLoadable(old); err != nil {
		return err
	}
	changed, err := linux.LoadDeviceProgram(old.Name, old.GPL, instructions)
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("%w: the kernel does not take it again as it shows it, so only its loader can let the device pass: %w", volume.ErrPrecondition, err)
	}
	if err != nil {
		return err
	}
	defer changed.Close()
	return linux.AttachDeviceProgram(p.file, changed, old, flags)
}

// checkLoadable returns an error for a program that cannot be loaded again from
// what the kernel shows of it: calls and maps are shown as what they were turned
// into (bpf_insn_prepare_dump in kernel/bpf/syscall.c).
func checkLoadable(program *linux.Program) error {
	// Elsewhere, blocks have another form (big-endian), or programs are shown with
	// instructions that the processor needs and no program may have
	// (bpf_jit_needs_zext in arch/*/net).
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return fmt.Errorf("%w: device programs are extended on amd64 and arm64 only, and this machine is %s", volume.ErrPrecondition, runtime.GOARCH)
	}
	const call = 0x85 // JMP | CALL
	for _, instruction := range program.Instructions {
		if instruction.Code == call || program.Maps > 0 {
			return fmt.Errorf("%w: the program calls functions or uses maps, so it cannot be extended; only its loader can let the device pass", volume.ErrPrecondition)
		}
		if instruction.Registers&0xf == hiddenRegister {
			return fmt.Errorf("%w: the kernel hides the constants of the program, so it cannot be extended; set net.core.bpf_jit_harden to 1 or 0, and restart the container", volume.ErrPrecondition)
		}
	}
	return nil
}
