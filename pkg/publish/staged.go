package publish

import (
	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Staged is a device that is staged as a volume. It may have gone since.
type Staged struct {
	VolumeID string
	// Number and DiskSeq say which device it is.
	Number  linux.DeviceNumber
	DiskSeq uint64
	// Mode is the access mode.
	Mode volume.AccessMode
}

// Staged returns the device that is staged as the volume, and touches none.
func (p *Publisher) Staged(volumeID string) (device Staged, found bool, err error) {
	record, found, err := p.records(volumeID).staged(p.bootID)
	return Staged{volumeID, record.number, record.seq, record.mode}, found, err
}

// AllStaged returns all that is staged on this node, in no order.
func (p *Publisher) AllStaged() ([]Staged, error) {
	volumes, err := allRecords(p.state, p.roots)
	if err != nil {
		return nil, err
	}
	var all []Staged
	for _, records := range volumes {
		record, found, err := records.staged(p.bootID)
		if err != nil {
			return nil, err
		}
		if found {
			all = append(all, Staged{record.volumeID, record.number, record.seq, record.mode})
		}
	}
	return all, nil
}

// StagedAs returns as which volume a device is staged.
func (p *Publisher) StagedAs(device *blockdev.Device) (volumeID string, found bool, err error) {
	all, err := p.AllStaged()
	for _, one := range all {
		if one.Number == device.Number() && one.DiskSeq == device.DiskSeq() {
			return one.VolumeID, true, err
		}
	}
	return "", false, err
}
