package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"unicode/utf16"
)

// The header of a table (UEFI 2.10, 5.3.2), and its entries.
const (
	signature     = "EFI PART"
	revision      = 0x00010000
	headerLength  = 92
	entryLength   = 128
	entriesLength = Entries * entryLength
)

// The places of the two headers, in logical blocks; the backup's is the last one.
const primaryHeader = 1

// errNoSignature says that there is no header at all in the place of one.
var errNoSignature = errors.New("there is no GPT header")

// The primary copy is the first of these many bytes of the disk: the protective
// MBR, the header, the entries.
func (t *Table) primaryLength() uint64 { return primaryLength(t.BlockSize) }

func primaryLength(blockSize uint64) uint64 { return 2*blockSize + entriesLength }

// The backup is the last of these many bytes of the disk: the entries, the header.
func (t *Table) backupLength() uint64 { return backupLength(t.BlockSize) }

func backupLength(blockSize uint64) uint64 { return blockSize + entriesLength }

// encode returns the two copies as they stand on the disk. The table must have
// passed Check.
func (t *Table) encode() (primary, backup []byte, err error) {
	entries, err := t.encodeEntries()
	if err != nil {
		return nil, nil, err
	}
	checksum := crc32.ChecksumIEEE(entries)
	last := t.Size/t.BlockSize - 1
	primary = slices.Concat(t.encodeMBR(), t.encodeHeader(primaryHeader, last, primaryHeader+1, checksum), entries)
	backup = slices.Concat(entries, t.encodeHeader(last, primaryHeader, last-entriesLength/t.BlockSize, checksum))
	return primary, backup, nil
}

// encodeMBR returns the protective MBR: one partition of type 0xEE from the
// second block to the end of the disk, or as far as 32 bits reach (UEFI 2.10,
// table 5.4). It begins at block 1, of which 0x000200 is the CHS address.
func (t *Table) encodeMBR() []byte {
	block := make([]byte, t.BlockSize)
	record := block[446:]
	copy(record, []byte{0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(record[8:], primaryHeader)
	binary.LittleEndian.PutUint32(record[12:], uint32(min(t.Size/t.BlockSize-1, math.MaxUint32))) //nolint:gosec // It is at most that.
	copy(block[510:], []byte{0x55, 0xaa})
	return block
}

func (t *Table) encodeHeader(mine, other, entries uint64, checksum uint32) []byte {
	block := make([]byte, t.BlockSize)
	start, end := t.Usable()
	header := append(block[:0], signature...)
	order := binary.LittleEndian
	header = order.AppendUint32(header, revision)
	header = order.AppendUint32(header, headerLength)
	header = order.AppendUint64(header, 0) // The checksum of the header, and four bytes that are reserved.
	for _, number := range []uint64{mine, other, start / t.BlockSize, end/t.BlockSize - 1} {
		header = order.AppendUint64(header, number)
	}
	header = append(header, t.Disk[:]...)
	header = order.AppendUint64(header, entries)
	for _, number := range []uint32{Entries, entryLength, checksum} {
		header = order.AppendUint32(header, number)
	}
	order.PutUint32(header[16:], crc32.ChecksumIEEE(header))
	return block
}

func (t *Table) encodeEntries() ([]byte, error) {
	entries := make([]byte, 0, entriesLength)
	order := binary.LittleEndian
	for i := range t.Entries {
		entry := &t.Entries[i]
		if !entry.Used() {
			entries = append(entries, make([]byte, entryLength)...)
			continue
		}
		name, err := encodeName(entry.Name)
		if err != nil {
			return nil, err
		}
		entries = append(append(entries, entry.Type[:]...), entry.ID[:]...)
		for _, number := range []uint64{entry.Start / t.BlockSize, entry.End()/t.BlockSize - 1, entry.Attributes} {
			entries = order.AppendUint64(entries, number)
		}
		for _, unit := range name {
			entries = order.AppendUint16(entries, unit)
		}
	}
	return entries, nil
}

func encodeName(name string) (units [MaxName]uint16, err error) {
	encoded := utf16.Encode([]rune(name))
	if len(encoded) > MaxName || strings.Contains(name, "\x00") {
		return units, fmt.Errorf("%q cannot be the name of a partition: it has %d of at most %d UTF-16 code units, or a NUL", name, len(encoded), MaxName)
	}
	copy(units[:], encoded)
	return units, nil
}

// decode reads a copy: its header, which must be at the block mine, and the
// function that returns its entries. What is wrong with it is the error.
func decode(header []byte, blockSize, mine uint64, readEntries func(block uint64) ([]byte, error)) (Table, error) {
	order := binary.LittleEndian
	if !bytes.HasPrefix(header, []byte(signature)) {
		return Table{}, errNoSignature
	}
	plain := bytes.Clone(header[:headerLength])
	clear(plain[16:20])
	number := func(offset int) uint64 { return order.Uint64(header[offset:]) }
	switch {
	case order.Uint32(header[12:]) != headerLength, crc32.ChecksumIEEE(plain) != order.Uint32(header[16:]):
		return Table{}, errors.New("the checksum of the header is wrong")
	case order.Uint32(header[8:]) != revision, order.Uint32(header[80:]) != Entries, order.Uint32(header[84:]) != entryLength:
		return Table{}, fmt.Errorf("the header is not one of revision 1.0 with %d entries of %d bytes", Entries, entryLength)
	case number(24) != mine:
		return Table{}, fmt.Errorf("the header at block %d says that it is at %d", mine, number(24))
	}
	last := max(mine, number(32))
	if last > math.MaxInt64/blockSize-1 {
		return Table{}, fmt.Errorf("the header says that the disk has %d blocks", last)
	}
	table, err := New(GUID(header[56:72]), (last+1)*blockSize, blockSize)
	if err != nil {
		return Table{}, err
	}
	if err := table.checkPlaces(number, mine); err != nil {
		return Table{}, err
	}
	entries, err := readEntries(number(72))
	if err != nil {
		return Table{}, err
	}
	if crc32.ChecksumIEEE(entries) != order.Uint32(header[88:]) {
		return Table{}, errors.New("the checksum of the entries is wrong")
	}
	return table, table.decodeEntries(entries)
}

// checkPlaces refuses a header that has its copy or its entries elsewhere than a
// table of this size. Some tools begin the usable space later than they need to.
func (t *Table) checkPlaces(number func(offset int) uint64, mine uint64) error {
	start, end := t.Usable()
	last := t.Size/t.BlockSize - 1
	other, entries := last, uint64(primaryHeader+1)
	if mine != primaryHeader {
		other, entries = primaryHeader, last-entriesLength/t.BlockSize
	}
	if number(32) != other || number(72) != entries || number(40) < start/t.BlockSize || number(48) > end/t.BlockSize-1 {
		return fmt.Errorf("the header at block %d has its copy at %d, its entries at %d and the usable space from %d to %d: not as on a disk of this size",
			mine, number(32), number(72), number(40), number(48))
	}
	return nil
}

func (t *Table) decodeEntries(entries []byte) error {
	for i := range t.Entries {
		raw := entries[i*entryLength:][:entryLength]
		entry := Entry{Type: GUID(raw[:16]), ID: GUID(raw[16:32]), Attributes: binary.LittleEndian.Uint64(raw[48:])}
		if !entry.Used() {
			continue
		}
		first, last := binary.LittleEndian.Uint64(raw[32:]), binary.LittleEndian.Uint64(raw[40:])
		if first > last || last >= t.Size/t.BlockSize {
			return fmt.Errorf("partition %d is from block %d to %d of %d", i+1, first, last, t.Size/t.BlockSize)
		}
		entry.Start, entry.Size = first*t.BlockSize, (last-first+1)*t.BlockSize
		entry.Name = decodeName(raw[56:])
		t.Entries[i] = entry
	}
	return t.Check()
}

func decodeName(raw []byte) string {
	var units []uint16
	for ; len(raw) >= 2; raw = raw[2:] {
		unit := binary.LittleEndian.Uint16(raw)
		if unit == 0 {
			break
		}
		units = append(units, unit)
	}
	return string(utf16.Decode(units))
}
