package file

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The parameters of a StorageClass that this pool reads.
const (
	// ThinParameter is "true" for volumes that no space is reserved for.
	ThinParameter = "thin"
	// BlockSizeParameter is the logical block size of the device in bytes.
	BlockSizeParameter = "blockSize"
)

// defaultBlockSize is what nearly all software expects of a disk.
const defaultBlockSize = 512

// sizeUnit is what the size of a volume is a multiple of, in bytes: the largest
// block size of a device, and the usual one of a filesystem.
const sizeUnit = 4096

// preferredSize is the size of a volume for which none is asked, in bytes.
const preferredSize = 1 << 30

type parameters struct {
	thin bool
	// blockSize is 0 where the StorageClass does not say.
	blockSize uint32
}

func parseParameters(values map[string]string) (parameters, error) {
	var p parameters
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := values[key]
		switch key {
		case ThinParameter:
			if value != "true" && value != "false" {
				return parameters{}, fmt.Errorf(`%w: parameter %s is %q; expected "true" or "false"`, volume.ErrInvalid, key, value)
			}
			p.thin = value == "true"
		case BlockSizeParameter:
			size, err := strconv.ParseUint(value, 10, 32)
			if err != nil || !validBlockSize(uint32(size)) {
				return parameters{}, fmt.Errorf(`%w: parameter %s is %q; expected "512" or "4096"`, volume.ErrInvalid, key, value)
			}
			p.blockSize = uint32(size)
		default:
			return parameters{}, fmt.Errorf("%w: parameter %q is unknown to a pool of files; it reads %s and %s",
				volume.ErrInvalid, key, ThinParameter, BlockSizeParameter)
		}
	}
	return p, nil
}

func validBlockSize(size uint32) bool { return size == 512 || size == 4096 }
