package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
)

// disks looks at the claims of disks, and at their partition tables.
func (e *examination) disks() {
	for _, name := range slices.Sorted(maps.Keys(e.survey.Claims)) {
		at := slices.IndexFunc(e.survey.Disks, func(d blockdev.Disk) bool { return d.Name == name })
		if at < 0 {
			continue
		}
		one, claim := e.survey.Disks[at], e.survey.Claims[name]
		if claim.Primary != nil || claim.Backup != nil {
			e.damagedTable(one)
		}
		if !e.hasDisk(one) {
			e.orphanClaim(one, claim)
		}
	}
}

// orphanClaim tells of a disk that a pool has claimed which the configuration does not
// have.
func (e *examination) orphanClaim(one blockdev.Disk, claim disk.Claim) {
	f := Finding{
		Check: OrphanClaim, Subject: one.NodePath,
		Message: fmt.Sprintf("%s belongs to the pool %s, which this node's configuration does not have", one.NodePath, claim.Pool),
	}
	if len(claim.Volumes) == 0 {
		f.Message += "; it has no volumes"
		f.Meaning = "the disk is of no use to anybody"
		f.Remedy = fmt.Sprintf("give the node the pool back, or take the disk from it: rawblockctl wipe %s", one.NodePath)
	} else {
		f.Message += "; it has the volumes " + strings.Join(claim.Volumes, ", ")
		f.Meaning = "the volumes cannot be used, and nobody deletes them"
		f.Remedy = fmt.Sprintf("give the node the pool back (docs/reference/configuration.md); if nobody needs the volumes any more: rawblockctl wipe --with-volumes %s", one.NodePath)
	}
	e.add(f)
}

// tableReads is how often a table is read before it counts as damaged, and tableWait
// how long after each other: the plugin may be changing it, one copy after the other.
const (
	tableReads = 3
	tableWait  = 100 * time.Millisecond
)

// damagedTable tells of a partition table with a copy that is damaged.
func (e *examination) damagedTable(one blockdev.Disk) {
	var claim disk.Claim
	for range tableReads {
		var err error
		claim, err = disk.ReadClaim(one, e.Inspector.Sysfs)
		if err != nil || claim.Primary == nil && claim.Backup == nil {
			return
		}
		time.Sleep(tableWait)
	}
	which, cause := "backup", claim.Backup
	if claim.Primary != nil {
		which, cause = "primary", claim.Primary
	}
	f := Finding{
		Check: DamagedTable, Subject: one.NodePath,
		Message: fmt.Sprintf("the %s copy of the partition table of %s is damaged: %v", which, one.NodePath, cause),
		Meaning: "the other copy is whole and all volumes can be used; if that is damaged too, they are lost",
		Remedy:  "find out who wrote there (a partitioning tool, a firmware RAID), then rawblockctl doctor --fix; the plugin mends it too, when it starts and when it changes the table",
		locks:   []string{one.NodePath},
	}
	if pool := e.memberOf(one); pool != nil {
		f.Fix = "write the damaged copy again from the other one"
		f.mend = func(context.Context) error { return pool.RepairTable(one.Name) }
	} else {
		f.Remedy = fmt.Sprintf("the disk is in no pool of this node; see rawblockctl disks for why, and sgdisk --verify %s", one.NodePath)
	}
	e.add(f)
}

// memberOf returns the pool that a disk is in, nil where it is in none.
func (e *examination) memberOf(one blockdev.Disk) tableRepairer {
	for _, facts := range e.survey.Pools {
		pool, ok := facts.Volumes.(tableRepairer)
		if ok && facts.Status != nil && slices.ContainsFunc(facts.Status.Disks, func(m disk.Member) bool { return m.Path == one.NodePath }) {
			return pool
		}
	}
	return nil
}

// wipes looks at what is being wiped.
func (e *examination) wipes() {
	for _, facts := range e.survey.Pools {
		for _, wipe := range facts.Wipes {
			if wipe.Err == nil {
				continue
			}
			e.add(Finding{
				Check: FailedWipe, Subject: wipe.Of + wipe.Place,
				Message: fmt.Sprintf("pool %s cannot wipe %d bytes of %s%s: %v", facts.Name, wipe.Left, wipe.Of, wipe.Place, wipe.Err),
				Meaning: "the space is not offered, so that nobody reads what a former user wrote; it is tried again each minute",
				Remedy:  "see the kernel's log for I/O errors; where a disk fails, replace it; where somebody has the space open, end that (lsblk, fuser -v)",
			})
		}
	}
}

// mappings looks at what staged devices are made of.
func (e *examination) mappings() {
	for _, id := range slices.Sorted(maps.Keys(e.staged)) {
		e.mapping(id, e.staged[id].Staged.Number, 0)
	}
}

// maxDepth is how far a device is followed down.
const maxDepth = 16

func (e *examination) mapping(volumeID string, number linux.DeviceNumber, depth int) {
	vitals, err := e.Inspector.Sysfs.Vitals(number)
	if err != nil || depth > maxDepth {
		return // That it has gone is told otherwise.
	}
	if vitals.Mapped {
		fails, err := hasErrorRow(number)
		if err != nil {
			e.survey.Errors = append(e.survey.Errors, fmt.Sprintf("table of %s: %v", vitals.Name, err))
		}
		if fails {
			e.add(Finding{
				Check: ErrorMapping, Subject: "/dev/" + vitals.Name,
				Message: fmt.Sprintf("the mapping %s, which volume %s is made of, has rows of the type error", vitals.Name, volumeID),
				Meaning: "all that is read and written there fails, as after a forced detach; what is on the disks below is as it was",
				Remedy:  "delete the pods that use the volume, so that it is staged anew; where a tool of yours made the mapping, give it its table again (dmsetup load, dmsetup resume)",
			})
		}
	}
	for _, below := range vitals.Below {
		e.mapping(volumeID, below, depth+1)
	}
}

// errorRow is the type of a row of a mapping that fails all I/O (drivers/md/dm-target.c).
const errorRow = "error"

func hasErrorRow(number linux.DeviceNumber) (fails bool, err error) {
	control, err := linux.OpenMapper()
	if err != nil {
		return false, err
	}
	defer control.Close()
	table, err := control.Table(number)
	return slices.ContainsFunc(table, func(row linux.MappingTarget) bool { return row.Type == errorRow }), err
}

// unseen tells of what could not be looked at: nobody may take that for well.
func (e *examination) unseen() {
	for _, text := range e.survey.Errors {
		e.add(Finding{
			Check: Unseen, Subject: text,
			Message: "this could not be looked at: " + text,
			Meaning: "what is wrong there, nobody can tell",
			Remedy:  "mend what the message says, and look again; where no plugin answers, see --config and --kubelet-dir",
		})
	}
}
