package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// fillingPart is the part of the filesystem, one in so many, below which what is free
// is told to be little where thin volumes may need more.
const fillingPart = 10

// Health returns what is wrong with the pool; see driver's reporter.
func (p *Pool) Health(context.Context) ([]volume.Condition, []linux.DeviceNumber, error) {
	devices, err := p.devices()
	if err != nil {
		return nil, nil, err
	}
	found, err := p.filesystem(devices, true)
	return found, devices, err
}

// VolumeHealth returns what is wrong with a volume; see driver's reporter.
func (p *Pool) VolumeHealth(_ context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error) {
	devices, err := p.devices()
	if err != nil {
		return nil, nil, err
	}
	r, info, err := p.volume(name).read()
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil, fmt.Errorf("volume %s of pool %s: %w", name, p.name, err)
	}
	if err != nil {
		return []volume.Condition{p.unreadable(name, err)}, devices, nil
	}
	found, err := p.filesystem(devices, r.Thin && info.Allocated < info.Size)
	return append(found, p.changed(name, r)...), devices, err
}

// changed returns what a pod has changed of the device of a volume, which it has.
func (p *Pool) changed(name string, r record) []volume.Condition {
	data, err := linux.OpenPath(p.volume(name).data())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // It was deleted meanwhile.
	}
	if err != nil {
		return []volume.Condition{p.unreadable(name, err)}
	}
	defer data.Close()
	device, changes, err := p.loops.Changes(data, p.loopOptions(name, r))
	if err != nil {
		return []volume.Condition{p.condition(volume.Degraded, volume.CheckFailed, "the device of volume %s cannot be looked at: %v; see what its pod runs, and the kernel's log", name, err)}
	}
	if len(changes) == 0 {
		return nil
	}
	return []volume.Condition{p.condition(volume.Degraded, volume.DeviceChanged,
		"a user of volume %s has changed its loop device: %s %s; delete its pod: when the volume is published again, the device is set back", name, device, strings.Join(changes, ", and "))}
}

// unreadable is the condition of a volume that cannot be read.
func (p *Pool) unreadable(name string, err error) volume.Condition {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p.condition(volume.DataLoss, volume.BackingDeleted, "the file %s of volume %s is missing; restore it from a copy, or delete the volume", p.volume(name).data(), name)
	case errors.As(err, new(syscall.Errno)):
		return p.condition(volume.Degraded, volume.CheckFailed, "volume %s cannot be looked at: %v; see what is wrong with the filesystem and its disk", name, err)
	default:
		return p.condition(volume.Inaccessible, volume.RecordDamaged, "volume %s cannot be used: %v; restore its record from a copy: its data may be whole", name, err)
	}
}

// devices returns the device that the filesystem is on: none of btrfs, which makes up
// a number.
func (p *Pool) devices() ([]linux.DeviceNumber, error) {
	info, err := linux.Stat(p.dir)
	if err != nil || info.ID.Device.Major == 0 {
		return nil, err
	}
	return []linux.DeviceNumber{info.ID.Device}, nil
}

// filesystem returns what is wrong with the filesystem, which is on the devices: for thin
// volumes, also that it is filling up.
func (p *Pool) filesystem(devices []linux.DeviceNumber, thin bool) ([]volume.Condition, error) {
	readOnly, err := linux.IsReadOnly(p.dir)
	if err != nil {
		return nil, err
	}
	var found []volume.Condition
	if readOnly {
		found = append(found, p.condition(volume.Degraded, volume.PoolReadOnly,
			"the filesystem of %s is read-only, as one becomes after errors, and no volume can be written; look in the kernel's log, repair it, and mount it again", p.options.Directory))
	}
	for _, device := range devices {
		count, err := p.sysfs.FilesystemErrors(device)
		if err != nil {
			return nil, err
		}
		if count > 0 {
			found = append(found, p.condition(volume.Degraded, volume.PoolErrors,
				"the kernel has found errors in the filesystem of %s since it was last checked (%d), and may refuse writes; look in the kernel's log, and check it with e2fsck when its pods have ended and it is unmounted", p.options.Directory, count))
		}
	}
	if !thin {
		return found, nil
	}
	filling, err := p.filling()
	return append(found, filling...), err
}

func (p *Pool) condition(severity volume.Severity, reason volume.Reason, format string, args ...any) volume.Condition {
	return volume.Condition{Severity: severity, Reason: reason, Message: "pool " + p.name + ": " + fmt.Sprintf(format, args...)}
}

// filling tells whether the filesystem may be full before the thin volumes are.
func (p *Pool) filling() ([]volume.Condition, error) {
	free, total, err := linux.FreeSpace(p.dir)
	if err != nil || free >= total/fillingPart {
		return nil, err
	}
	owed, err := p.thinOwed()
	if err != nil || owed <= free {
		return nil, err
	}
	if free < sizeUnit {
		return []volume.Condition{p.condition(volume.Degraded, volume.PoolFull,
			"the filesystem of %s is full, so writes to thin volumes fail; make room, or grow it", p.options.Directory)}, nil
	}
	return []volume.Condition{p.condition(volume.Degraded, volume.PoolFilling,
		"the filesystem of %s has less than a tenth of its space free, and less than thin volumes may still need; make room, or grow it, before writes fail", p.options.Directory)}, nil
}

// owed is how much more the thin volumes may come to store, as it was a moment ago:
// each of many volumes asks for the same.
type owed struct {
	mu    sync.Mutex
	when  time.Time
	bytes uint64
}

// owedAge is how old that may be.
const owedAge = 10 * time.Second

func (p *Pool) thinOwed() (uint64, error) {
	p.owed.mu.Lock()
	defer p.owed.mu.Unlock()
	if time.Since(p.owed.when) < owedAge {
		return p.owed.bytes, nil
	}
	names, err := list(p.volumes())
	if err != nil {
		return 0, err
	}
	p.owed.bytes = 0
	for _, name := range names {
		// One that cannot be read is told of by itself.
		if r, info, err := p.volume(name).read(); err == nil && r.Thin {
			p.owed.bytes += less(info.Size, info.Allocated)
		}
	}
	p.owed.when = time.Now()
	return p.owed.bytes, nil
}

// Missing returns the names of the volumes that are damaged; see driver's reporter.
func (p *Pool) Missing() []string {
	names, err := list(p.volumes())
	if err != nil {
		return nil // List says so itself.
	}
	return slices.DeleteFunc(names, func(name string) bool {
		_, _, err := p.volume(name).read()
		return err == nil || errors.Is(err, volume.ErrNotFound)
	})
}
