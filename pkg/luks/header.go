package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The layout that the headers of this package have (LUKS2 On-Disk Format
// Specification 1.1, 2): two copies of the metadata, the areas of the key slots, and
// from dataOffset on the data.
const (
	metadataSize = 16 << 10
	binarySize   = 4096
	checksumAt   = 448
)

// dataOffset is where the data begins, in bytes.
var dataOffset = volume.LUKS2.Overhead()

// The magic of the first copy and of the second.
const (
	primaryMagic   = "LUKS\xba\xbe"
	secondaryMagic = "SKUL\xba\xbe"
)

// header is what is read of a header here; the rest is for cryptsetup.
type header struct{ uuid, label, subsystem string }

// parseHeader reads a copy of the metadata, which is at an offset of the device, and
// returns what is wrong with it.
func parseHeader(metadata []byte, magic string, offset uint64) (header, error) {
	order := binary.BigEndian
	switch {
	case len(metadata) != metadataSize || !bytes.HasPrefix(metadata, []byte(magic)):
		return header{}, errors.New("there is none")
	case order.Uint16(metadata[6:]) != 2:
		return header{}, fmt.Errorf("it is of version %d", order.Uint16(metadata[6:]))
	case order.Uint64(metadata[8:]) != metadataSize || order.Uint64(metadata[256:]) != offset:
		return header{}, fmt.Errorf("it has %d bytes and is that of offset %d", order.Uint64(metadata[8:]), order.Uint64(metadata[256:]))
	case text(metadata[72:104]) != "sha256":
		return header{}, fmt.Errorf("its checksum is of kind %q", text(metadata[72:104]))
	}
	plain := bytes.Clone(metadata)
	clear(plain[checksumAt : checksumAt+64])
	if sum := sha256.Sum256(plain); !bytes.Equal(sum[:], metadata[checksumAt:checksumAt+len(sum)]) {
		return header{}, errors.New("its checksum is wrong")
	}
	return header{uuid: text(metadata[168:208]), label: text(metadata[24:72]), subsystem: text(metadata[208:256])}, nil
}

// text reads a field of text that ends at its first NUL.
func text(field []byte) string {
	before, _, _ := bytes.Cut(field, []byte{0})
	return string(before)
}

// state is what is at the beginning of a device.
type state int

const (
	// blank: zeros, as far as was looked.
	blank state = iota + 1
	// unfinished: making the header was cut off; there is no data.
	unfinished
	// complete: a header.
	complete
)

// found is what is at the beginning of a device.
type found struct {
	state  state
	header header
	// damage is what is wrong with one of the two copies; cryptsetup writes it again
	// when it opens the device.
	damage error
}

// lookedAt is how much of a device must be zero for it to be blank, in bytes: the
// place of the header, and as much of that of the data, which a header that was lost
// left behind.
func lookedAt() uint64 { return 2 * dataOffset }

// inspect tells what is at the beginning of a device of a size in bytes. Errors:
// volume.ErrPrecondition where it is anything else than a state.
func inspect(device io.ReaderAt, size uint64, owner owner) (found, error) {
	copies := make([]byte, 2*metadataSize)
	if err := readFull(device, copies, 0); err != nil {
		return found{}, err
	}
	if mark, isMark := bytes.CutPrefix(copies, []byte(markPrefix)); isMark {
		if !owner.ownsMark(text(mark)) {
			return found{}, fmt.Errorf("%w: the device has the unfinished header of another volume, %q, not of %s", volume.ErrMismatch, text(mark), owner)
		}
		return found{state: unfinished}, nil
	}
	first, firstErr := parseHeader(copies[:metadataSize], primaryMagic, 0)
	second, secondErr := parseHeader(copies[metadataSize:], secondaryMagic, metadataSize)
	switch {
	case firstErr == nil && secondErr != nil:
		return found{complete, first, fmt.Errorf("the second copy: %w", secondErr)}, nil
	case firstErr == nil:
		return found{state: complete, header: first}, nil
	case secondErr == nil:
		return found{complete, second, fmt.Errorf("the first copy: %w", firstErr)}, nil
	}
	at, err := firstByte(device, min(size, lookedAt()))
	if err != nil {
		return found{}, err
	}
	if at >= 0 {
		return found{}, fmt.Errorf("%w: the device has no valid LUKS2 header (first copy: %w; second copy: %w) and is not blank: there is data at byte %d; nothing was changed: restore the header (cryptsetup luksHeaderRestore), or delete the volume",
			volume.ErrPrecondition, firstErr, secondErr, at)
	}
	return found{state: blank}, nil
}

// firstByte returns where the first byte is that is not zero, or -1.
func firstByte(device io.ReaderAt, size uint64) (int64, error) {
	zeros, chunk := make([]byte, chunkSize), make([]byte, chunkSize)
	for offset := uint64(0); offset < size; offset += chunkSize {
		part := chunk[:min(chunkSize, size-offset)]
		if err := readFull(device, part, offset); err != nil {
			return 0, err
		}
		if bytes.Equal(part, zeros[:len(part)]) {
			continue
		}
		isSet := func(r rune) bool { return r != 0 }
		return int64(offset) + int64(bytes.IndexFunc(part, isSet)), nil //nolint:gosec // At most lookedAt.
	}
	return -1, nil
}

// chunkSize is how much is read or written at a time, in bytes.
const chunkSize = 1 << 20

// readFull reads all of data. A device that ends before has gone: none is so small.
func readFull(device io.ReaderAt, data []byte, offset uint64) error {
	n, err := device.ReadAt(data, int64(offset)) //nolint:gosec // At most lookedAt.
	if n == len(data) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read the header: %w", err)
}
