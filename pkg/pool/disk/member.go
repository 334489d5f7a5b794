package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// member is a disk of the pool. The pool's mutex guards it.
type member struct {
	disk blockdev.Disk
	// table is what is on the disk.
	table gpt.Table
	// claim is the claim partition, claimed.
	claim *linux.Raw
	// numbers are the device numbers that partitions had a moment ago, by index.
	numbers map[int]linux.DeviceNumber
	// secure says whether the disk can erase securely; nil: not known yet.
	secure *bool
	// restsUntil is when new volumes may be placed on the disk again, which could not
	// be read.
	restsUntil time.Time
	// wiping is what the wiper does, by the ID of the entry.
	wiping map[gpt.GUID]*progress
	// wiper says that the wiper of this disk runs, stop ends it.
	wiper   bool
	context context.Context //nolint:containedctx // It is that of a goroutine, which a call need not start.
	stop    context.CancelFunc
}

// String names the disk for a message.
func (m *member) String() string { return fmt.Sprintf("%s (%s)", m.disk.NodePath, m.table.Disk) }

// release gives the disk back. Its wiper ends by itself.
func (m *member) release() {
	if m.stop != nil {
		m.stop()
	}
	if m.claim != nil {
		m.claim.Close()
	}
}

// open opens the disk and verifies that it is still the one that was found.
func (m *member) open(sysfs blockdev.Sysfs) (*blockdev.Device, error) {
	device, err := blockdev.OpenNumber(m.disk.Number, sysfs)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", m, err)
	}
	if err := verify(device, m.disk); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// replace puts a table on a disk of the pool, and shows it. After an error the member
// has the one that is on the disk, as far as that can be read. Errors:
// gpt.ErrUntouched; then no new volumes are placed on the disk for a while.
func (p *Pool) replace(m *member, table gpt.Table) error {
	defer p.show()
	began := time.Now()
	err := m.replace(p.sysfs, table)
	m.restsUntil = time.Time{}
	if errors.Is(err, gpt.ErrUntouched) {
		now := time.Now()
		m.restsUntil = now.Add(max(memberRest, restsFor*now.Sub(began)))
	}
	return err
}

// memberRest is how long a disk of the pool that cannot be read is left in peace, at
// least.
const memberRest = 30 * time.Second

func (m *member) replace(sysfs blockdev.Sysfs, table gpt.Table) error {
	device, err := m.open(sysfs)
	if err != nil {
		return err
	}
	defer device.Close()
	raw, err := device.Raw(linux.RawWrite)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := gpt.Replace(raw, m.disk.Size, &m.table, &table); err != nil {
		if errors.Is(err, gpt.ErrUntouched) {
			return fmt.Errorf("change the partition table of %s: %w", m, err)
		}
		found, readErr := gpt.Read(raw, m.disk.Size, m.disk.LogicalBlockSize)
		if readErr == nil && found.Table.Disk == m.table.Disk {
			m.table = found.Table
		}
		return errors.Join(fmt.Errorf("change the partition table of %s: %w", m, err), readErr)
	}
	m.table = table
	return nil
}

// The kernel is asked again for a while whether a partition is still in use:
// whoever looks at all that changes, such as udev, opens it for a moment.
const (
	busyRetries = 20
	busyWait    = 25 * time.Millisecond
)

// deletePartition makes the kernel forget a partition. Errors: volume.ErrInUse.
func deletePartition(device *blockdev.Device, index int) error {
	var err error
	for range busyRetries {
		if err = device.DeletePartition(index); !errors.Is(err, volume.ErrInUse) {
			break
		}
		time.Sleep(busyWait)
	}
	if err == nil {
		crashpoint.Here("partition forgotten")
	}
	return err
}

// align makes the kernel's partitions those of the table, and touches none that is
// as it should be. Errors: volume.ErrInUse where one that has to go is open.
func (m *member) align(sysfs blockdev.Sysfs) error {
	device, err := m.open(sysfs)
	if err != nil {
		return err
	}
	defer device.Close()
	known, err := sysfs.Partitions(m.disk.Number)
	if err != nil {
		return err
	}
	present := map[int]bool{}
	for _, partition := range known {
		stays, err := m.alignOne(device, partition)
		if err != nil {
			return fmt.Errorf("partition %d of %s is not as the table says: %w", partition.Index, m, err)
		}
		present[partition.Index] = stays
	}
	for i := range m.table.Entries {
		entry := &m.table.Entries[i]
		if !hasDevice(entry) || present[i+1] {
			continue
		}
		err := device.AddPartition(i+1, entry.Start, entry.Size)
		if errors.Is(err, volume.ErrInUse) && m.isShown(sysfs, i) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", m, err)
		}
		crashpoint.Here("partition added")
	}
	clear(m.numbers)
	return nil
}

// isShown reports whether the kernel has the partition of an entry by now: it reads
// the table itself when a disk comes, and when udev asks it to.
func (m *member) isShown(sysfs blockdev.Sysfs, index int) bool {
	entry := &m.table.Entries[index]
	known, err := sysfs.Partitions(m.disk.Number)
	return err == nil && slices.ContainsFunc(known, func(p blockdev.Partition) bool {
		return p.Index == index+1 && p.Start == entry.Start && p.Size == entry.Size
	})
}

// alignOne removes a partition that is elsewhere than its entry, or larger, and
// grows one that is smaller.
func (m *member) alignOne(device *blockdev.Device, partition blockdev.Partition) (stays bool, err error) {
	var entry gpt.Entry
	if i := partition.Index - 1; i >= 0 && i < gpt.Entries {
		entry = m.table.Entries[i]
	}
	switch {
	case !hasDevice(&entry) || partition.Start != entry.Start || partition.Size > entry.Size:
		return false, deletePartition(device, partition.Index)
	case partition.Size < entry.Size:
		err = device.ResizePartition(partition.Index, entry.Start, entry.Size)
		crashpoint.Here("partition grown")
	}
	return true, err
}

// openPartition opens the partition of an entry, and verifies that it is that: by
// the place where the kernel has it, and by the disk. The caller closes it.
func (m *member) openPartition(sysfs blockdev.Sysfs, index int) (*blockdev.Device, error) {
	if place := m.at(index); place.known {
		if device, err := place.open(sysfs); err == nil {
			return device, nil
		}
	}
	if err := m.align(sysfs); err != nil {
		return nil, err
	}
	partitions, err := sysfs.Partitions(m.disk.Number)
	if err != nil {
		return nil, err
	}
	for _, partition := range partitions {
		m.numbers[partition.Index-1] = partition.Number
	}
	return m.at(index).open(sysfs)
}
