package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// holders looks for volumes that no pod has, and that the host has made something of: it
// activates by itself what a pod wrote. What a pod has is its own business: a privileged
// one may activate its own.
func (e *examination) holders(ctx context.Context) {
	for _, loop := range e.survey.Loops {
		if id := e.volumeOf(loop); id != "" {
			e.holder(id, loop.Number)
		}
	}
	for id, record := range e.staged {
		e.holder(id, record.Staged.Number)
	}
	for _, facts := range e.survey.Pools {
		pool, ok := facts.Volumes.(reporter)
		if !ok || facts.Directory != "" { // The device of a pool of files is that of its filesystem.
			continue
		}
		for _, info := range facts.Infos {
			id := volume.ID{Pool: facts.Name, Name: info.Name, Node: e.Inspector.Node}.String()
			_, devices, err := pool.VolumeHealth(ctx, info.Name)
			if err != nil {
				continue // Its health tells.
			}
			for _, number := range devices {
				e.holder(id, number)
			}
		}
	}
}

// holder tells of what is made of the device of a volume.
func (e *examination) holder(volumeID string, number linux.DeviceNumber) {
	holders := e.foreignHolders(number)
	if len(holders) == 0 || e.isUsed(volumeID) || e.mounted[number] {
		return
	}
	e.add(Finding{
		Check: ForeignHolder, Subject: "/dev/" + holders[0].Name,
		Message: fmt.Sprintf("volume %s, which no pod has, is held by %s", volumeID, blockdev.DescribeHolders(holders)),
		Meaning: "it can be neither staged nor deleted: the host activated what a pod wrote into it, or an administrator has built upon it",
		Remedy:  blockdev.RemedyForHolders(holders),
	})
}

// foreignHolders returns what is made of a device, but for the mappings of encrypted
// volumes (pkg/luks, owner.go).
func (e *examination) foreignHolders(number linux.DeviceNumber) []blockdev.Holder {
	return slices.DeleteFunc(e.Inspector.Sysfs.HoldersAbove(number), func(h blockdev.Holder) bool {
		return strings.HasPrefix(h.Mapping, "rawblock:") && strings.HasPrefix(h.UUID, "CRYPT-LUKS2-")
	})
}

// isUsed reports whether a pod has the volume, or a running container.
func (e *examination) isUsed(volumeID string) bool {
	record, staged := e.staged[volumeID]
	return staged && (len(record.Live()) > 0 || e.mounted[record.Staged.Number]) || e.isAttachedAs(volumeID)
}
