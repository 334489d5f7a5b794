package gpt_test

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What comes from a disk never makes the parser fail otherwise than by an error,
// and what it takes can be written and is read again as it was.
func FuzzRead(f *testing.F) {
	const small = 128 << 10
	table := must(gpt.New(gpt.HashGUID("disk"), small, 512))
	table.Entries[0] = gpt.Entry{Type: linuxType, ID: gpt.HashGUID("a"), Start: 20 << 10, Size: 4096, Name: "name"}
	table.Entries[127] = gpt.Entry{Type: linuxType, ID: gpt.HashGUID("b"), Start: 40 << 10, Size: 8192, Attributes: 1 << 63}
	disk := &memory{data: make([]byte, small), cut: -1, bad: -1}
	if err := gpt.Format(disk, &table); err != nil {
		f.Fatal(err)
	}
	f.Add(disk.data, uint16(512))
	f.Add(disk.data[:64<<10], uint16(512))
	f.Add(disk.data[64<<10:], uint16(512))
	f.Add(disk.data, uint16(4096))
	f.Add([]byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, data []byte, blockSize uint16) {
		disk := &memory{data: data, cut: -1, bad: -1}
		found, err := gpt.Read(disk, uint64(len(data)), uint64(blockSize))
		if err != nil {
			return
		}
		if err := found.Table.Check(); err != nil {
			t.Fatalf("it returned a table that is wrong: %v", err)
		}
		rig.Must(t, gpt.Replace(disk, uint64(len(data)), &found.Table, &found.Table))
		again, err := gpt.Read(disk, uint64(len(data)), uint64(blockSize))
		if err != nil || again.Table != found.Table || again.Primary != nil || again.Backup != nil {
			t.Fatalf("written and read again: %v, %v, %v", again.Primary, again.Backup, err)
		}
	})
}

// The checksums keep a fuzzer out of the header: here they are right.
func FuzzHeader(f *testing.F) {
	f.Add(uint16(512+80), uint64(1<<32-1), uint16(1024+32), uint64(1<<63))
	f.Add(uint16(512+32), uint64(1<<63), uint16(1024+56), uint64(0xd800d800))
	f.Add(uint16(512+24), uint64(1<<64-1), uint16(1024+40), uint64(1<<64-1))
	f.Fuzz(func(t *testing.T, at uint16, value uint64, entryAt uint16, entryValue uint64) {
		disk := formatted(t, newTable(512))
		put(disk.data, at, value)
		put(disk.data, entryAt, entryValue)
		sign(disk.data)
		clear(disk.data[size-512:]) // No backup helps.
		found, err := gpt.Read(disk, size, 512)
		if err != nil {
			return
		}
		if err := found.Table.Check(); err != nil {
			t.Fatalf("it returned a table that is wrong: %v", err)
		}
		if err := found.Repair(disk); err != nil {
			t.Fatalf("repair: %v", err)
		}
	})
}

// put changes eight bytes of the header or the entries.
func put(data []byte, at uint16, value uint64) {
	if at >= 512 && at < 17<<10-8 {
		binary.LittleEndian.PutUint64(data[at:], value)
	}
}

// sign makes the checksums of the primary copy right.
func sign(data []byte) {
	header := data[512:][:92]
	binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(data[1024:17<<10]))
	clear(header[16:20])
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header))
}
