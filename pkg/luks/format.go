package luks

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// KDF is how a key of any length becomes the key of a key slot
// (cryptsetup-luksFormat(8)). What is not said to it, cryptsetup measures, which would
// make the cost, and the memory that a node needs, a matter of how busy it is.
type KDF struct {
	// Kind is argon2id or pbkdf2.
	Kind string
	// Iterations is the number of iterations: at least 4 of argon2id, 1000 of pbkdf2.
	Iterations int
	// Memory in KiB and Lanes are argon2id's; cryptsetup takes no more lanes than the
	// node has processors.
	Memory, Lanes int
}

// Argon2id has the second recommended parameters of RFC 9106, 4, for where memory is
// scarce, but for the number of iterations, of which cryptsetup does not accept less.
var Argon2id = KDF{Kind: "argon2id", Iterations: 4, Memory: 64 << 10, Lanes: 4}

func (k KDF) arguments() []string {
	args := []string{"--pbkdf", k.Kind, "--pbkdf-force-iterations", strconv.Itoa(k.Iterations)}
	if k.Memory != 0 {
		args = append(args, "--pbkdf-memory", strconv.Itoa(k.Memory), "--pbkdf-parallel", strconv.Itoa(k.Lanes))
	}
	return args
}

// sectorSize is that of dm-crypt, 512 bytes.
const sectorSize = 512

// prepare sees to it that a device has the header of the volume. It makes one where
// the device is blank, or making it was cut off. The device is claimed meanwhile.
//
// Errors: volume.ErrPrecondition where there is anything else; volume.ErrMismatch where
// the header is of another volume; volume.ErrNotFound where the device has gone.
func (m *Mappings) prepare(ctx context.Context, o owner, raw *blockdev.Device, key []byte) (found, error) {
	if raw.Size() <= dataOffset {
		return found{}, fmt.Errorf("%w: %s has %d bytes, and %d are for the header alone", volume.ErrPrecondition, raw, raw.Size(), dataOffset)
	}
	// Whoever uses it is named better than by the claim below.
	if err := raw.CheckFree(); err != nil {
		return found{}, err
	}
	device, err := linux.OpenRaw(raw.Node(), linux.RawWrite|linux.RawExclusive)
	if err != nil {
		return found{}, goneError(raw, fmt.Errorf("claim %s: %w", raw, err))
	}
	defer device.Close()
	at, err := inspect(device, raw.Size(), o)
	if err != nil {
		return found{}, goneError(raw, err)
	}
	if at.state == complete {
		return at, o.check(at.header)
	}
	if err := m.format(ctx, o, device, key); err != nil {
		return found{}, goneError(raw, fmt.Errorf("make the LUKS2 header of %s: %w", raw, err))
	}
	at, err = inspect(device, raw.Size(), o)
	if err == nil && (at.state != complete || at.damage != nil) {
		err = fmt.Errorf("%s did not keep the LUKS2 header: %v", raw, at.damage) //nolint:errorlint // It may be nil.
	}
	return at, err
}

// goneError says of an error of a device that has gone that it is that.
func goneError(device *blockdev.Device, err error) error {
	if blockdev.IsGone(err) {
		return fmt.Errorf("%w: the device %s has gone: %w", volume.ErrNotFound, device, err)
	}
	return err
}

// format makes a header in memory and writes it to the device.
func (m *Mappings) format(ctx context.Context, o owner, device *linux.Raw, key []byte) error {
	sector, err := linux.LogicalBlockSize(device)
	if err != nil {
		return err
	}
	// What the device is to have: a little behind the header is enough for cryptsetup.
	image, err := linux.MemoryFile("header", dataOffset+chunkSize)
	if err != nil {
		return err
	}
	defer image.Close() //nolint:errcheck // It is in memory.
	args := append([]string{
		"luksFormat", "--type", "luks2", "--batch-mode", "--key-file", "-",
		"--offset", strconv.FormatUint(dataOffset/sectorSize, 10), "--luks2-metadata-size", strconv.Itoa(metadataSize),
		// The mapping has sectors like those of the device, as promised by its pool.
		"--sector-size", strconv.FormatUint(uint64(sector), 10),
		"--label", o.label(), "--subsystem", o.subsystem(),
	}, m.kdf.arguments()...)
	if err := m.derive(ctx, program.Command{Name: "cryptsetup", Args: append(args, pathOf(image)), Stdin: key}); err != nil {
		return err
	}
	return writeHeader(device, image, uint64(sector), o)
}

// pathOf names an open file to a program of the host: it sees the processes of the
// host, of which this is one.
func pathOf(file *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()) }

// writeHeader writes a header so that whatever cuts it off leaves a device that says
// what it is: the first block, which the disk writes whole or not at all, is first
// the mark, then the beginning of the header. Nobody reads the rest before that.
func writeHeader(device *linux.Raw, image *os.File, block uint64, o owner) error {
	first := linux.RawBuffer(int(block)) //nolint:gosec // That of a disk.
	copy(first, o.mark())
	if err := writeThrough(device, first, 0); err != nil {
		return err
	}
	crashpoint.Here("header marked as unfinished")
	for offset := block; offset < dataOffset; {
		part := linux.RawBuffer(int(min(chunkSize, dataOffset-offset))) //nolint:gosec // At most chunkSize.
		if _, err := image.ReadAt(part, int64(offset)); err != nil {    //nolint:gosec // At most dataOffset.
			return err
		}
		if _, err := device.WriteAt(part, int64(offset)); err != nil { //nolint:gosec // The same.
			return err
		}
		offset += uint64(len(part))
	}
	if err := device.Sync(); err != nil {
		return err
	}
	crashpoint.Here("rest of the header written")
	if _, err := image.ReadAt(first, 0); err != nil {
		return err
	}
	if err := writeThrough(device, first, 0); err != nil {
		return err
	}
	crashpoint.Here("header written")
	return nil
}

func writeThrough(device *linux.Raw, data []byte, offset int64) error {
	if _, err := device.WriteAt(data, offset); err != nil {
		return err
	}
	return device.Sync()
}
