package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// devices returns what lvm may look at: what a tenant can write to never, since he can
// write there what LVM keeps its groups in, nor what has another group of the name.
func (p *Pool) devices() ([]string, error) {
	found, err := p.sysfs.HostDevices(p.isPools)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var paths []string
	for _, device := range found {
		if device.Refused == "" && !p.twins[device.Path] {
			paths = append(paths, device.Path)
		}
	}
	return paths, nil
}

// isPools reports whether a disk that has partitions belongs to a pool of disks. The kernel
// does not tell what partitions are; those of them who have one cannot write the table.
func (p *Pool) isPools(number linux.DeviceNumber) (bool, error) {
	disk, err := blockdev.OpenNumber(number, p.sysfs)
	if err != nil {
		return false, err
	}
	defer disk.Close()
	raw, err := disk.Raw(0)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	_, claimed, err := gpt.ClaimantOf(raw)
	return claimed, err
}

// report reports the volume group that is meant. Errors: volume.ErrNotFound where it is on
// no device that can be trusted; volume.ErrPrecondition where two may be it.
func (p *Pool) report(ctx context.Context) (lvm.Group, error) {
	if p.hasTwins() {
		if err := p.choose(ctx); err != nil {
			return lvm.Group{}, err
		}
	}
	g, err := p.lvm.Report(ctx, p.options.VolumeGroup)
	if errors.Is(err, lvm.ErrTwice) {
		if err = p.choose(ctx); err != nil {
			return lvm.Group{}, err
		}
		g, err = p.lvm.Report(ctx, p.options.VolumeGroup)
	}
	if errors.Is(err, lvm.ErrTwice) { // None of them is pinned.
		return lvm.Group{}, fmt.Errorf("%w: the configuration wants vgUUID %s, which none of them has; attach its disks, or correct vgUUID: %w", volume.ErrNotFound, p.options.UUID, err)
	}
	if errors.Is(err, volume.ErrNotFound) {
		return lvm.Group{}, fmt.Errorf("%w%s", err, p.refused(ctx, ""))
	}
	if err == nil && p.options.UUID != "" && g.UUID != p.options.UUID {
		return lvm.Group{}, fmt.Errorf("%w: volume group %s has the UUID %s, and the configuration wants vgUUID %s; attach the disks of that one, or correct vgUUID", volume.ErrNotFound, g.Name, g.UUID, p.options.UUID)
	}
	return g, err
}

func (p *Pool) hasTwins() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.twins) > 0
}

// choose leaves the devices out that have another group of the name than the one that the
// configuration pins. Errors: volume.ErrPrecondition where it pins none.
func (p *Pool) choose(ctx context.Context) error {
	found, err := p.sysfs.HostDevices(p.isPools)
	if err != nil {
		return err
	}
	members, err := p.members(ctx, found, func(d blockdev.HostDevice) bool { return d.Refused == "" })
	if err != nil {
		return err
	}
	twins, places := map[string]bool{}, map[string][]string{}
	for _, m := range members {
		places[m.GroupUUID] = append(places[m.GroupUUID], m.Device)
		if m.GroupUUID != p.options.UUID {
			twins[m.Device] = true
		}
	}
	if len(places) > 1 && p.options.UUID == "" {
		var groups []string
		for uuid, devices := range places {
			groups = append(groups, fmt.Sprintf("%s on %s", uuid, strings.Join(devices, ", ")))
		}
		slices.Sort(groups)
		return fmt.Errorf("%w: this node has %d volume groups %s: %s; pin the pool's with vgUUID in the configuration, or rename the other (vgrename UUID NAME)",
			volume.ErrPrecondition, len(places), p.options.VolumeGroup, strings.Join(groups, "; "))
	}
	if len(places) < 2 || places[p.options.UUID] == nil {
		clear(twins) // Where it is none of them, report says so.
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.twins = twins
	return nil
}

// members returns the parts of groups of the pool's name on some of the devices, by the
// kernel's nodes.
func (p *Pool) members(ctx context.Context, devices []blockdev.HostDevice, of func(blockdev.HostDevice) bool) ([]lvm.Member, error) {
	var found []lvm.Member
	var paths []string
	for _, device := range devices {
		if of(device) {
			paths = append(paths, device.Path)
		}
	}
	members, err := p.lvm.Members(ctx, paths)
	for _, m := range members {
		if m.Group != p.options.VolumeGroup {
			continue
		}
		if device, err := blockdev.Open(m.Device, p.sysfs); err == nil { // lvm prefers links of udev.
			if path, err := p.sysfs.NodePath(device.Number()); err == nil {
				m.Device = path
			}
			device.Close()
		}
		found = append(found, m)
	}
	return found, err
}

// refusedTimeout is how long a message may take.
const refusedTimeout = 10 * time.Second

// refused says which devices have a part of a group of the name, or of the one with a UUID,
// and are not looked at, and why: for a message, since anybody can have written it.
func (p *Pool) refused(ctx context.Context, uuid string) string {
	devices, err := p.sysfs.HostDevices(p.isPools)
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, refusedTimeout) // One of them may hang.
	defer cancel()
	members, err := p.members(ctx, devices, func(d blockdev.HostDevice) bool { return d.Refused != "" && !d.Empty })
	if err != nil {
		p.logger.V(1).Info("Cannot look for volume groups on devices that are not used", "err", err)
		return ""
	}
	var text strings.Builder
	for _, m := range members {
		i := slices.IndexFunc(devices, func(d blockdev.HostDevice) bool { return d.Path == m.Device })
		if i >= 0 && (uuid == "" || m.GroupUUID == uuid) {
			fmt.Fprintf(&text, "; what %s has of a volume group %s (UUID %s) is not believed: %s", m.Device, m.Group, m.GroupUUID, devices[i].Refused)
		}
	}
	return text.String()
}
