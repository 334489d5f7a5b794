package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

const (
	// ports is how many NVMe and virtio disks a machine can have at one time: each
	// takes a port of PCI Express.
	ports = 8
	// firstSlot is the slot of the first port on the root bus; the others follow.
	firstSlot = 0x10
	// targets is how many SCSI disks it can have.
	targets = 32
)

// disks are the disks of a machine. Its methods may be called concurrently.
type disks struct {
	qmp   *qmp
	dir   string
	mutex sync.Mutex
	made  []*disk
}

// disk is one of them, plugged in or not.
type disk struct {
	machine.Disk
	id      int
	plugged bool
	// place is the number of its port or target, which it keeps.
	place int
	// broken counts the nodes of QEMU that have stood before its medium.
	broken int
	node   string
}

func (d *disk) device() string { return fmt.Sprintf("disk%d", d.id) }
func (d *disk) medium() string { return fmt.Sprintf("medium%d", d.id) }
func (d *disk) format() string { return fmt.Sprintf("format%d", d.id) }
func (d *disk) onPort() bool   { return d.Bus != machine.SCSI }

// where is an expression for the path of the disk in /sys/devices.
func (d *disk) where() string {
	if d.onPort() {
		return fmt.Sprintf(`/0000:00:%02x\.0/0000:`, firstSlot+d.place)
	}
	return fmt.Sprintf(`/target\d+:0:%[1]d/\d+:0:%[1]d:0/`, d.place)
}

// do carries out a request.
func (d *disks) do(ctx context.Context, request machine.Request) (machine.Reply, error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if request.Operation == machine.OpAdd {
		added, err := d.add(request.Disk)
		if err != nil {
			return machine.Reply{}, err
		}
		return machine.Reply{ID: added.id, Place: added.where()}, d.plug(ctx, added)
	}
	if request.ID < 0 || request.ID >= len(d.made) {
		return machine.Reply{}, fmt.Errorf("there is no disk %d", request.ID)
	}
	found := d.made[request.ID]
	reply := machine.Reply{ID: found.id, Place: found.where()}
	switch request.Operation {
	case machine.OpPlug:
		return reply, d.plug(ctx, found)
	case machine.OpUnplug:
		return reply, d.unplug(ctx, found)
	case machine.OpResize:
		return reply, d.qmp.run(ctx, "block_resize", arguments{"node-name": found.format(), "size": request.Size})
	case machine.OpBreak:
		return reply, d.fail(ctx, found, request.Offset)
	case machine.OpHang:
		return reply, d.hang(ctx, found)
	case machine.OpMend:
		return reply, d.mend(ctx, found)
	case machine.OpSet:
		return reply, d.qmp.run(ctx, "qom-set", arguments{
			"path": "/machine/peripheral/" + found.device(), "property": request.Property, "value": json.RawMessage(request.Value),
		})
	}
	return reply, fmt.Errorf("a machine cannot %s a disk", request.Operation)
}

// add makes a disk, and its medium where there is none.
func (d *disks) add(described machine.Disk) (*disk, error) {
	if described.Bus == "" {
		described.Bus = machine.SCSI
	}
	added := &disk{Disk: described, id: len(d.made)}
	limit := ports
	if !added.onPort() {
		limit = targets
	}
	for d.taken(added) {
		if added.place++; added.place == limit {
			return nil, fmt.Errorf("there is no place for one more disk on %s", added.Bus)
		}
	}
	if added.Medium == "" {
		added.Medium = added.device()
	}
	path := filepath.Join(d.dir, added.Medium)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if info, statErr := file.Stat(); statErr != nil || info.Size() == 0 {
		err = errors.Join(statErr, file.Truncate(added.Size))
	}
	d.made = append(d.made, added)
	return added, errors.Join(err, file.Close())
}

// taken reports whether a disk that is plugged in has the place of another.
func (d *disks) taken(by *disk) bool {
	for _, other := range d.made {
		if other.plugged && other.onPort() == by.onPort() && other.place == by.place {
			return true
		}
	}
	return false
}

// plug attaches a disk to the machine.
func (d *disks) plug(ctx context.Context, plugged *disk) error {
	if plugged.plugged || d.taken(plugged) {
		return fmt.Errorf("the place of disk %d is taken", plugged.id)
	}
	err := d.qmp.run(ctx, "blockdev-add", arguments{
		"node-name": plugged.medium(), "driver": "file", "filename": filepath.Join(d.dir, plugged.Medium),
		// Two disks may have one medium.
		"locking": "off", "read-only": plugged.ReadOnly, "discard": "unmap",
	})
	if err != nil {
		return err
	}
	plugged.node = plugged.medium()
	if err := d.qmp.run(ctx, "blockdev-add", plugged.formatOver(plugged.medium())); err != nil {
		return err
	}
	if err := d.qmp.run(ctx, "device_add", plugged.properties()); err != nil {
		return err
	}
	plugged.plugged = true
	return nil
}

// formatOver describes the node that the device has, over another.
func (d *disk) formatOver(node string) arguments {
	return arguments{"node-name": d.format(), "driver": "raw", "file": node, "read-only": d.ReadOnly, "discard": "unmap"}
}

// properties are those of QEMU's device.
func (d *disk) properties() arguments {
	all := arguments{"id": d.device(), "drive": d.format()}
	if d.Serial != "" {
		all["serial"] = d.Serial
	}
	if d.LogicalBlockSize != 0 {
		all["logical_block_size"] = d.LogicalBlockSize
		all["physical_block_size"] = max(d.LogicalBlockSize, d.PhysicalBlockSize)
	} else if d.PhysicalBlockSize != 0 {
		all["physical_block_size"] = d.PhysicalBlockSize
	}
	switch d.Bus {
	case machine.NVMe:
		all["driver"], all["bus"] = "nvme", fmt.Sprintf("port%d", d.place)
		if d.Serial == "" {
			all["serial"] = d.device() // It does without none.
		}
	case machine.Virtio:
		all["driver"], all["bus"], all["share-rw"] = "virtio-blk-pci", fmt.Sprintf("port%d", d.place), true
	default:
		all["driver"], all["bus"], all["share-rw"] = "scsi-hd", "scsi.0", true
		all["channel"], all["scsi-id"], all["lun"] = 0, d.place, 0
		if d.WWN != 0 {
			all["wwn"] = d.WWN
		}
	}
	maps.Copy(all, d.Options)
	return all
}

// unplug takes a disk from the machine, and returns once the guest has given it up.
func (d *disks) unplug(ctx context.Context, pulled *disk) error {
	if !pulled.plugged {
		return fmt.Errorf("disk %d is not plugged in", pulled.id)
	}
	if err := d.qmp.remove(ctx, pulled.device()); err != nil {
		return err
	}
	pulled.plugged = false
	if err := d.qmp.run(ctx, "blockdev-del", arguments{"node-name": pulled.format()}); err != nil {
		return err
	}
	if pulled.node != pulled.medium() {
		if err := d.qmp.run(ctx, "blockdev-del", arguments{"node-name": pulled.node}); err != nil {
			return err
		}
	}
	return d.qmp.run(ctx, "blockdev-del", arguments{"node-name": pulled.medium()})
}

// fail puts a node before the medium at which everything fails but a flush: QEMU
// flushes a node before it changes it, and what is broken could not be mended. With an
// offset only what touches that byte fails.
func (d *disks) fail(ctx context.Context, broken *disk, offset int64) error {
	var errors []arguments
	for _, kind := range []string{"read", "write", "write-zeroes", "discard"} {
		failing := arguments{"event": "none", "iotype": kind, "errno": 5}
		if offset != 0 {
			failing["sector"] = offset / 512 // Blkdebug counts in these, whatever the disk's are.
		}
		errors = append(errors, failing)
	}
	return d.putBefore(ctx, broken, arguments{"driver": "blkdebug", "image": broken.medium(), "inject-error": errors})
}

// hang puts a node before the medium at which nothing ever ends.
func (d *disks) hang(ctx context.Context, hung *disk) error {
	group := fmt.Sprintf("group%d.%d", hung.id, hung.broken)
	err := d.qmp.run(ctx, "object-add", arguments{
		"qom-type": "throttle-group", "id": group, "limits": arguments{"bps-total": 1},
	})
	if err != nil {
		return err
	}
	return d.putBefore(ctx, hung, arguments{"driver": "throttle", "throttle-group": group, "file": hung.medium()})
}

func (d *disks) putBefore(ctx context.Context, changed *disk, node arguments) error {
	changed.broken++
	name := fmt.Sprintf("before%d.%d", changed.id, changed.broken)
	node["node-name"], node["read-only"] = name, changed.ReadOnly
	if err := d.qmp.run(ctx, "blockdev-add", node); err != nil {
		return err
	}
	return d.useNode(ctx, changed, name)
}

// mend has the disk use its medium alone again.
func (d *disks) mend(ctx context.Context, mended *disk) error {
	if !mended.plugged || mended.node == mended.medium() {
		return nil
	}
	return d.useNode(ctx, mended, mended.medium())
}

// useNode has the disk's device use a node, and removes the one that it used.
func (d *disks) useNode(ctx context.Context, changed *disk, name string) error {
	if err := d.qmp.run(ctx, "blockdev-reopen", arguments{"options": []any{changed.formatOver(name)}}); err != nil {
		return err
	}
	before := changed.node
	changed.node = name
	if before == changed.medium() {
		return nil
	}
	return d.qmp.run(ctx, "blockdev-del", arguments{"node-name": before})
}
