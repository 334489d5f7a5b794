package devcgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// programs is a cgroup of cgroup v2: device programs are attached to it.
type programs struct{ ledger }

func newPrograms(ledger ledger) folder { return programs{ledger} }

func (p programs) grants() ledger { return p.ledger }

// allows: all programs that run for the cgroup must let it pass, those of the
// cgroups above as well (cgroup_bpf_attach in kernel/bpf/cgroup.c).
func (p programs) allows(number linux.DeviceNumber, access Access) (bool, error) {
	ids, _, err := linux.DeviceProgramIDs(p.file, true)
	if err != nil {
		return false, fmt.Errorf("see what the container may open: %w", err)
	}
	for _, id := range ids {
		program, err := linux.OpenProgram(id)
		if errors.Is(err, fs.ErrNotExist) {
			return p.allows(number, access) // It was replaced meanwhile.
		}
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
	if err := p.add(number, access); err != nil {
		return err
	}
	return p.change(ctx, number, access)
}

func (p programs) revoke(ctx context.Context, number linux.DeviceNumber, _ Access) error {
	return p.change(ctx, number, 0)
}

// systemdProgram is what systemd calls its device programs; it replaces them as it
// likes, by what its units say (src/core/bpf-devices.c in systemd).
const systemdProgram = "sd_devices"

// change has each program of the cgroup let the device pass for the access, 0 for
// as much as it did by itself.
func (p programs) change(ctx context.Context, number linux.DeviceNumber, access Access) error {
	ids, flags, err := linux.DeviceProgramIDs(p.file, false)
	if err != nil {
		return fmt.Errorf("find the device programs of the container: %w", err)
	}
	for _, id := range ids {
		if err := p.changeProgram(ctx, id, flags, number, access); err != nil {
			return err
		}
	}
	return nil
}

// attempts is how often a program may be replaced by somebody else while it is
// being changed here.
const attempts = 10

func (p programs) changeProgram(ctx context.Context, id uint32, flags linux.AttachFlags, number linux.DeviceNumber, access Access) error {
	for range attempts {
		old, err := linux.OpenProgram(id)
		if errors.Is(err, fs.ErrNotExist) {
			return p.change(ctx, number, access) // It was replaced; see by what.
		}
		if err != nil {
			return fmt.Errorf("open device program %d of the container: %w", id, err)
		}
		err = p.replace(ctx, old, flags, number, access)
		old.Close()
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%w: device program %d of %s is being replaced again and again", volume.ErrAborted, id, p.file.Name())
}

// replace attaches a program in place of the old one that is the same but for the
// grant.
func (p programs) replace(ctx context.Context, old *linux.Program, flags linux.AttachFlags, number linux.DeviceNumber, access Access) error {
	if strings.HasPrefix(old.Name, systemdProgram) {
		done, err := allowInUnit(ctx, p.file.Name(), number, access)
		if done || err != nil {
			return err
		}
		klog.FromContext(ctx).Info("systemd decides on the container's devices and cannot be reached; changing its program until it makes another",
			"cgroup", p.file.Name())
	}
	rest, had := without(old.Instructions, number)
	if access == 0 && !had {
		return nil
	}
	if access != 0 {
		if allowed, err := decide(old.Instructions, number, access); err == nil && allowed {
			return nil
		}
		rest = append(newBlock(number, access), rest...)
	}
	if err := checkLoadable(old); err != nil {
		return err
	}
	changed, err := linux.LoadDeviceProgram(old.Name, old.GPL, rest)
	if err != nil {
		return fmt.Errorf("change device program %d (%s) of %s: %w", old.ID, old.Name, p.file.Name(), err)
	}
	defer changed.Close()
	if err := linux.AttachDeviceProgram(p.file, changed, old, flags); err != nil {
		return fmt.Errorf("change device program %d (%s) of %s: %w", old.ID, old.Name, p.file.Name(), err)
	}
	return nil
}

// checkLoadable returns an error for a program that cannot be loaded again from
// what the kernel shows of it: calls and maps are shown as what they were turned
// into (bpf_insn_prepare_dump in kernel/bpf/syscall.c).
func checkLoadable(program *linux.Program) error {
	const call = 0x85 // JMP | CALL
	for _, instruction := range program.Instructions {
		if instruction.Code == call || program.Maps > 0 {
			return fmt.Errorf("%w: device program %d (%s) of the container calls functions or uses maps, so it cannot be extended; only its loader can let the device pass", volume.ErrPrecondition, program.ID, program.Name)
		}
	}
	return nil
}
