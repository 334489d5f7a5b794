package gpt

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
)

// The errors that a caller tells apart.
var (
	// ErrNone says that a disk has no partition table: neither copy has so much
	// as a header.
	ErrNone = errors.New("no partition table")
	// ErrDamaged says that neither copy of the table can be used.
	ErrDamaged = errors.New("both copies of the partition table are damaged")
	// ErrUnread says that neither copy of the table can be used, and at least one of
	// them since it cannot be read: nobody can say what is on the disk.
	ErrUnread = errors.New("the partition table cannot be read")
	// ErrUntouched says that Replace has written nothing, since what is on the disk
	// cannot be read.
	ErrUntouched = errors.New("nothing was written")
	// ErrChanged says that the table on the disk is not the one that was read
	// before: another program has written it.
	ErrChanged = errors.New("another program has changed the partition table")
)

// Disk is what a table is read from and written to, past all caches: what is
// read must be what the disk has.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes durable what was written.
	Sync() error
}

// Found is what Read found on a disk.
type Found struct {
	// Table is the table that is valid.
	Table Table
	// Primary and Backup say what is wrong with the copies; nil: nothing. At most
	// one of them is set.
	Primary, Backup error
}

// errRead says that a copy could not be read.
var errRead = errors.New("it cannot be read")

// errOld is what is wrong with a primary copy that is whole.
var errOld = errors.New("it is older than the backup: a change was cut off before its end")

// Read reads the table of a disk of the given size and logical block size in
// bytes, from both copies. A read error of one copy is a damage of this copy.
//
// Errors: ErrNone; ErrDamaged; ErrUnread.
func Read(disk io.ReaderAt, size, blockSize uint64) (Found, error) {
	empty, err := New(GUID{}, size, blockSize)
	if err != nil {
		return Found{}, err
	}
	primary, primaryErr := readCopy(disk, blockSize, primaryHeader)
	if primaryErr == nil && primary.Size > size {
		primaryErr = fmt.Errorf("it is that of a disk of %d bytes, but this one has %d", primary.Size, size)
	}
	end := empty.Size
	if primaryErr == nil {
		end = primary.Size // The disk may have grown since.
	}
	backup, backupErr := readCopy(disk, blockSize, end/blockSize-1)
	if primaryErr == nil && backupErr == nil && backup.Disk != primary.Disk {
		return Found{}, fmt.Errorf("%w: the primary is of disk %s, the backup of %s", ErrDamaged, primary.Disk, backup.Disk)
	}
	return choose(primary, backup, primaryErr, backupErr)
}

func choose(primary, backup Table, primaryErr, backupErr error) (Found, error) {
	switch {
	case errors.Is(primaryErr, errNoSignature) && errors.Is(backupErr, errNoSignature):
		return Found{}, ErrNone
	case primaryErr != nil && backupErr != nil:
		what := ErrDamaged
		if errors.Is(primaryErr, errRead) || errors.Is(backupErr, errRead) {
			what = ErrUnread
		}
		return Found{}, fmt.Errorf("%w: primary: %w; backup: %w", what, primaryErr, backupErr)
	case primaryErr != nil:
		return Found{Table: backup, Primary: primaryErr}, nil
	case backupErr == nil && backup != primary:
		return Found{Table: backup, Primary: errOld}, nil
	default:
		return Found{Table: primary, Backup: backupErr}, nil
	}
}

// readCopy reads the copy whose header is at the given block, and of the primary
// the protective MBR, without which the kernel does not look for a table.
func readCopy(disk io.ReaderAt, blockSize, block uint64) (Table, error) {
	header := make([]byte, blockSize)
	if err := readFull(disk, header, block*blockSize); err != nil {
		return Table{}, err
	}
	table, err := decode(header, blockSize, block, func(block uint64) ([]byte, error) {
		entries := make([]byte, entriesLength)
		return entries, readFull(disk, entries, block*blockSize)
	})
	if err != nil || block != primaryHeader {
		return table, err
	}
	mbr := make([]byte, blockSize)
	if err := readFull(disk, mbr, 0); err != nil {
		return Table{}, err
	}
	if !bytes.Equal(mbr[446:512], table.encodeMBR()[446:512]) {
		return Table{}, errors.New("the protective MBR is damaged")
	}
	return table, nil
}

func readFull(disk io.ReaderAt, data []byte, offset uint64) error {
	n, err := disk.ReadAt(data, int64(offset)) //nolint:gosec // Tables of disks of more than 2^63 bytes are refused.
	if n == len(data) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // The disk is shorter than it was said to be.
	}
	return fmt.Errorf("%w: %w", errRead, err)
}

// Repair writes the copy again that is damaged, if any, from the other one.
func (f *Found) Repair(disk Disk) error {
	if f.Primary == nil && f.Backup == nil {
		return nil
	}
	primary, backup, err := f.Table.encode()
	if err != nil {
		return err
	}
	if f.Backup != nil {
		err = writeCopy(disk, backup, f.Table.Size-f.Table.backupLength())
	} else {
		err = writeCopy(disk, primary, 0)
	}
	if err != nil {
		return fmt.Errorf("repair the partition table: %w", err)
	}
	crashpoint.Here("partition table repaired")
	return verify(disk, &f.Table)
}

// Replace puts a table on the disk in place of old. After an error the disk has
// either one: read it again. It must not run concurrently for one disk.
//
// Errors: ErrChanged, and nothing was written; ErrUntouched with what Read returned.
func Replace(disk Disk, size uint64, old, table *Table) error {
	found, err := Read(disk, size, old.BlockSize)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUntouched, err)
	}
	if found.Table != *old {
		return ErrChanged
	}
	if err := found.Repair(disk); err != nil {
		return err
	}
	return Format(disk, table)
}

// Format puts a table on a disk that has none.
func Format(disk Disk, table *Table) error {
	if err := table.Check(); err != nil {
		return fmt.Errorf("write a partition table: %w", err)
	}
	primary, backup, err := table.encode()
	if err != nil {
		return err
	}
	if err := writeCopy(disk, backup, table.Size-table.backupLength()); err != nil {
		return fmt.Errorf("write the backup of the partition table: %w", err)
	}
	crashpoint.Here("backup of the partition table written")
	if err := writeCopy(disk, primary, 0); err != nil {
		return fmt.Errorf("write the partition table: %w", err)
	}
	crashpoint.Here("partition table written")
	return verify(disk, table)
}

// writeCopy writes a copy in one call, so that only a power failure can cut it off.
func writeCopy(disk Disk, data []byte, offset uint64) error {
	if _, err := disk.WriteAt(data, int64(offset)); err != nil { //nolint:gosec // See readFull.
		return err
	}
	return disk.Sync()
}

// verify reads both copies back.
func verify(disk Disk, table *Table) error {
	found, err := Read(disk, table.Size, table.BlockSize)
	if err != nil {
		return fmt.Errorf("read the partition table back: %w", err)
	}
	if found.Primary != nil || found.Backup != nil || found.Table != *table {
		return fmt.Errorf("the disk did not keep the partition table: primary: %v, backup: %v", found.Primary, found.Backup) //nolint:errorlint // One of the two is nil.
	}
	return nil
}
