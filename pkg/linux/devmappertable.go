package linux

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The structures of linux/dm-ioctl.h: a list of mappings is made of struct
// dm_name_list (a number, the distance to the next, a name), a table of struct
// dm_target_spec (first sector, sectors, status, distance, type) and its parameters.
const (
	mapperNameHeader = 12
	mapperSpecSize   = unix.SizeofDmTargetSpec
	mapperTypeOffset = 24
)

// parseMappings reads the answer of DM_LIST_DEVICES. Each distance counts from its
// own entry; the number 0 in the first says that there is none.
func parseMappings(data []byte) (map[DeviceNumber]string, error) {
	mappings := map[DeviceNumber]string{}
	for len(data) >= mapperNameHeader {
		dev := binary.NativeEndian.Uint64(data)
		if dev == 0 && len(mappings) == 0 {
			return mappings, nil
		}
		mappings[DeviceNumber{unix.Major(dev), unix.Minor(dev)}] = unix.ByteSliceToString(data[mapperNameHeader:])
		next := binary.NativeEndian.Uint32(data[8:])
		if next == 0 {
			return mappings, nil
		}
		if next < mapperNameHeader || int(next) > len(data) {
			break
		}
		data = data[next:]
	}
	return nil, fmt.Errorf("the kernel's list of mappings ends within an entry")
}

// parseTargets reads the answer of DM_TABLE_STATUS. Each distance counts from the
// first row (retrieve_status in drivers/md/dm-ioctl.c).
func parseTargets(data []byte, count uint32) ([]MappingTarget, error) {
	var table []MappingTarget
	for at := 0; count > 0; count-- {
		if at < 0 || at+mapperSpecSize > len(data) {
			return nil, fmt.Errorf("the kernel's table of a mapping ends within a row")
		}
		row := data[at:]
		table = append(table, MappingTarget{
			Start:      binary.NativeEndian.Uint64(row),
			Length:     binary.NativeEndian.Uint64(row[8:]),
			Type:       unix.ByteSliceToString(row[mapperTypeOffset:mapperSpecSize]),
			Parameters: strings.TrimSuffix(unix.ByteSliceToString(row[mapperSpecSize:]), " "),
		})
		next := int(binary.NativeEndian.Uint32(row[20:]))
		if next <= at && count > 1 {
			return nil, fmt.Errorf("the kernel's table of a mapping goes back from row %d", len(table))
		}
		at = next
	}
	return table, nil
}

// formatTargets writes a table for DM_TABLE_LOAD. Each distance counts from its own
// row here (next_target in drivers/md/dm-ioctl.c).
func formatTargets(table []MappingTarget) []byte {
	var data []byte
	for _, target := range table {
		// With the NUL at its end, and up to the alignment of the next row.
		size := (mapperSpecSize + len(target.Parameters) + 1 + 7) / 8 * 8
		row := make([]byte, size)
		binary.NativeEndian.PutUint64(row, target.Start)
		binary.NativeEndian.PutUint64(row[8:], target.Length)
		binary.NativeEndian.PutUint32(row[20:], uint32(size)) //nolint:gosec // A row is short.
		copy(row[mapperTypeOffset:mapperSpecSize-1], target.Type)
		copy(row[mapperSpecSize:], target.Parameters)
		data = append(data, row...)
	}
	return data
}

// interruptUntil interrupts what a thread does in the kernel once ctx has ended, until
// it has returned. One signal could come just before the call, so there are more.
// SIGURG is the one that the Go runtime itself sends to threads, and means nothing.
func interruptUntil(ctx context.Context, thread int, returned <-chan struct{}, spoil func()) {
	select {
	case <-returned:
		return
	case <-ctx.Done():
	}
	spoil()
	for {
		unix.Tgkill(unix.Getpid(), thread, unix.SIGURG) //nolint:errcheck,gosec // The thread is locked and there.
		select {
		case <-returned:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}
