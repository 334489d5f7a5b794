package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
)

// records looks at the records of volumes.
func (e *examination) records() {
	for _, record := range e.survey.Records {
		switch {
		case record.Err != nil:
			e.damagedRecord(record)
		case !record.IsStaged:
			e.halfRecord(record)
		case !record.Current:
			e.oldRecord(record)
		default:
			e.stage(record)
		}
	}
}

func (e *examination) damagedRecord(record publish.Record) {
	e.add(Finding{
		Check: DamagedRecord, Subject: record.Dir,
		Message: fmt.Sprintf("the records in %s cannot be read: %v", record.Dir, record.Err),
		Meaning: "no volume can be staged on this node while it is there: nobody can tell which device it is about",
		Remedy: fmt.Sprintf("see which device pods have (rawblockctl status, findmnt); if none that is left has one that no other record tells of: rm -r %s; "+
			"without the record two volumes on one device are no longer kept apart", record.Dir),
	})
}

// halfRecord tells of publications of which it is not known what was staged: they are
// written after it.
func (e *examination) halfRecord(record publish.Record) {
	if len(record.Publications) == 0 {
		return // An empty directory, which the next call fills.
	}
	e.add(Finding{
		Check: DamagedRecord, Subject: record.Dir,
		Message: fmt.Sprintf("%s tells where a volume is published, and not which device was staged", record.Dir),
		Meaning: "the volume is not kept apart from others on the same device",
		Remedy:  "delete the pods that use it, so that it is staged anew",
	})
}

// oldRecord tells of a record of an earlier boot, which is there where the state
// directory outlives one.
func (e *examination) oldRecord(record publish.Record) {
	f := Finding{
		Check: OldRecord, Subject: record.Dir,
		Message: fmt.Sprintf("volume %s was staged in an earlier boot of the node", record.Staged.VolumeID),
		Meaning: "the record does not count and does no harm; the directory of records should be on a tmpfs, such as /run",
		Remedy:  "rawblockctl doctor --fix, and set --state-dir to a directory below /run",
		locks:   []string{record.Staged.VolumeID},
	}
	if len(record.Live()) == 0 {
		f.Fix = "remove the record"
		f.mend = func(context.Context) error { return e.Publisher.Unstage(record.Staged.VolumeID) }
	}
	e.add(f)
}

// stage looks at what is staged in this boot.
func (e *examination) stage(record publish.Record) {
	staged := record.Staged
	if id, claimed := hotplug.ClaimedBy(staged.VolumeID); claimed {
		e.attachmentClaim(record, id)
		return
	}
	attached, err := e.Inspector.Sysfs.IsAttached(staged.Number, staged.DiskSeq)
	if err != nil {
		e.survey.Errors = append(e.survey.Errors, fmt.Sprintf("volume %s: %v", staged.VolumeID, err))
		return
	}
	if !attached {
		e.stageWithoutDevice(record)
		return
	}
	_, noted := e.Inspector.KubeletVolume(e.survey, staged.VolumeID)
	if noted || e.survey.KubeletErr != nil || len(record.Live()) > 0 || e.isAttachedAs(staged.VolumeID) || e.mounted[staged.Number] {
		return
	}
	f := Finding{
		Check: OrphanStage, Subject: staged.VolumeID,
		Message: fmt.Sprintf("volume %s is staged as device %s, is published nowhere, and kubelet does not know it", staged.VolumeID, staged.Number),
		Meaning: "nobody unstages it: it cannot be deleted, and no other volume gets its device",
		Remedy:  "rawblockctl doctor --fix",
		Fix:     "forget that it is staged, and give up its device; its data stays",
		devices: []linux.DeviceNumber{staged.Number}, locks: []string{staged.VolumeID},
		mend: func(ctx context.Context) error { return e.unstage(ctx, staged.VolumeID) },
	}
	if name := e.encrypted(staged.Number); name != "" {
		f.Remedy, f.Fix, f.mend = fmt.Sprintf("it is encrypted: close it with cryptsetup close %s, then rawblockctl doctor --fix", name), "", nil
	}
	e.add(f)
}

// encrypted returns the name of the mapping that an open encrypted volume is
// (dm_prepare_uuid in cryptsetup's lib/libdevmapper.c), or nothing.
func (e *examination) encrypted(number linux.DeviceNumber) string {
	vitals, err := e.Inspector.Sysfs.Vitals(number)
	if err != nil || !vitals.Mapped {
		return ""
	}
	control, err := linux.OpenMapper()
	if err != nil {
		return vitals.Name // It cannot be told: leave it.
	}
	defer control.Close()
	info, err := control.Mapping(number)
	if err != nil {
		return vitals.Name
	}
	if strings.HasPrefix(info.UUID, "CRYPT-") {
		return info.Name
	}
	return ""
}

// unstage does what NodeUnstageVolume does.
func (e *examination) unstage(ctx context.Context, volumeID string) error {
	if err := e.Publisher.Unstage(volumeID); err != nil {
		return err
	}
	source, name, ok := e.nameIn(volumeID)
	if pool, can := source.Volumes.(deactivator); ok && can {
		return pool.Deactivate(ctx, name)
	}
	return nil
}

func (e *examination) stageWithoutDevice(record publish.Record) {
	staged := record.Staged
	f := Finding{
		Check: StageWithoutDevice, Subject: staged.VolumeID,
		Message: fmt.Sprintf("volume %s is staged as device %s with disk sequence number %d, which has gone", staged.VolumeID, staged.Number, staged.DiskSeq),
		locks:   []string{staged.VolumeID},
	}
	live := record.Live()
	if len(live) > 0 {
		f.Meaning = "pods that have it get I/O errors for all they do"
		f.Remedy = fmt.Sprintf("attach the disk again, then delete the pods that use the volume, which are those of %s; they get it anew", live[0].Target)
		e.add(f)
		return
	}
	f.Meaning = "nobody uses it; its device number may be another disk's by now, which the record tells apart"
	f.Remedy, f.Fix = "rawblockctl doctor --fix", "remove the record; a pod that needs the volume has it staged anew"
	f.mend = func(context.Context) error { return e.Publisher.Unstage(staged.VolumeID) }
	if e.isAttachedAs(staged.VolumeID) {
		f.Remedy, f.Fix, f.mend = "detach it first: rawblockctl list, rawblockctl detach ID", "", nil
	}
	e.add(f)
}

// attachmentClaim looks at a device that is claimed for an attachment.
func (e *examination) attachmentClaim(record publish.Record, id string) {
	if slices.ContainsFunc(e.survey.Attachments, func(a hotplug.Recorded) bool { return a.Err != nil || a.ID == id }) {
		return // One that cannot be read may be this one.
	}
	staged := record.Staged
	e.add(Finding{
		Check: DeadAttachment, Subject: id,
		Message: fmt.Sprintf("device %s is claimed for attachment %s, of which there is no record", staged.Number, id),
		Meaning: "nothing else gets the device",
		Remedy:  "rawblockctl doctor --fix",
		Fix:     "give up the claim",
		devices: []linux.DeviceNumber{staged.Number}, locks: []string{staged.VolumeID},
		mend: func(context.Context) error { return e.Publisher.Unstage(staged.VolumeID) },
	})
}

// attachmentRecords looks at the records of attachments.
func (e *examination) attachmentRecords() {
	for _, one := range e.survey.Attachments {
		switch {
		case one.Err != nil:
			e.add(Finding{
				Check: DamagedRecord, Subject: one.File,
				Message: fmt.Sprintf("the record of an attachment cannot be read: %v", one.Err),
				Meaning: "no device can be attached or detached on this node while it is there",
				Remedy:  "if it cannot be mended: rm " + one.File + "; what the attachment granted is taken back within 10 seconds where the plugin runs",
			})
		case !one.Current:
			e.add(Finding{
				Check: DeadAttachment, Subject: one.ID,
				Message: fmt.Sprintf("attachment %s to %s was made in an earlier boot of the node", one.ID, one.Target),
				Meaning: "its container has ended with that boot; the record does no harm",
				Remedy:  "start the plugin: it removes the record by itself",
			})
		case one.State == hotplug.Lost:
			e.lostAttachment(one)
		}
	}
}

// lostAttachment tells of an attachment whose disk has gone.
func (e *examination) lostAttachment(one hotplug.Recorded) {
	f := Finding{
		Check: DeadAttachment, Subject: one.ID,
		Message: fmt.Sprintf("the disk that is attached to %s at %s (attachment %s) has gone", one.Target, one.Path, one.ID),
		Meaning: "programs of the container that have it open get I/O errors; a disk that comes back is not attached by itself",
		Remedy:  fmt.Sprintf("rawblockctl detach %s; attach the disk anew when it is back", one.ID),
	}
	if e.Attachments != nil && one.Owner == "" {
		f.Fix = "detach it"
		f.mend = func(ctx context.Context) error {
			_, err := e.Attachments.Detach(ctx, one.ID)
			return err
		}
	}
	e.add(f)
}
