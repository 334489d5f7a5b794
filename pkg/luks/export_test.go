package luks

import (
	"context"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Prepare makes the header of a volume, or verifies it, which needs no device-mapper,
// and returns what is wrong with one of its copies.
func (m *Mappings) Prepare(ctx context.Context, id volume.ID, source volume.Source, raw *blockdev.Device, key []byte) (damage error, err error) {
	found, err := m.prepare(ctx, ownerOf(id, source), raw, key)
	return found.damage, err
}

// ParseHeader reads both copies of the metadata of a header.
func ParseHeader(copies []byte) (uuid string, errs [2]error) {
	if len(copies) < 2*metadataSize {
		copies = append(copies, make([]byte, 2*metadataSize-len(copies))...)
	}
	first, err := parseHeader(copies[:metadataSize], primaryMagic, 0)
	_, second := parseHeader(copies[metadataSize:2*metadataSize], secondaryMagic, metadataSize)
	return first.uuid, [2]error{err, second}
}
