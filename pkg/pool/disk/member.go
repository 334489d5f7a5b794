package disk

import (
	"context"
	"errors"
	"fmt"
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
	if err := m.verify(device); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// verify returns an error that wraps volume.ErrMismatch where the device, the disk
// or a partition of it, is of another disk than the one that was found.
func (m *member) verify(device *blockdev.Device) error {
	if device.DiskSeq() != m.disk.DiskSeq {
		return fmt.Errorf("%w: another disk is in the place of %s", volume.ErrMismatch, m)
	}
	return nil
}

// replace puts a table on the disk. After an error the member has the one that is
// on the disk.
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
		if err := device.AddPartition(i+1, entry.Start, entry.Size); err != nil {
			return fmt.Errorf("disk %s: %w", m, err)
		}
		crashpoint.Here("partition added")
	}
	clear(m.numbers)
	return nil
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
	if number, known := m.numbers[index]; known {
		if device, err := m.openNumber(sysfs, index, number); err == nil {
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
	number, known := m.numbers[index]
	if !known {
		return nil, fmt.Errorf("%w: the kernel does not show partition %d of %s", volume.ErrNotFound, index+1, m)
	}
	return m.openNumber(sysfs, index, number)
}

func (m *member) openNumber(sysfs blockdev.Sysfs, index int, number linux.DeviceNumber) (*blockdev.Device, error) {
	device, err := blockdev.OpenNumber(number, sysfs)
	if err != nil {
		return nil, err
	}
	if err := m.checkPartition(device, index); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

func (m *member) checkPartition(device *blockdev.Device, index int) error {
	if err := m.verify(device); err != nil {
		return err
	}
	got, err := device.Partition()
	if err != nil {
		return err
	}
	entry := &m.table.Entries[index]
	want := blockdev.Partition{Disk: m.disk.Number, Number: device.Number(), Index: index + 1, Start: entry.Start, Size: entry.Size}
	if got != want || device.Size() != entry.Size {
		return fmt.Errorf("%w: %s is partition %d of disk %s, %d bytes at %d; partition %d of %s has %d bytes at %d",
			volume.ErrMismatch, device, got.Index, got.Disk, got.Size, got.Start, want.Index, m, want.Size, want.Start)
	}
	return nil
}
