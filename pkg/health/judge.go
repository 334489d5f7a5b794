package health

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// stallTime is how long requests may be under way without any of them ending: the
// time after which the kernel itself gives up one request of a disk, twice over
// (SD_TIMEOUT in drivers/scsi/sd.h, nvme_core.io_timeout).
const stallTime = time.Minute

// errorTime is how long an I/O error is told after it was seen: so that one of the
// night is still told to those who come in the morning.
const errorTime = 24 * time.Hour

// disk tells disks apart as long as the machine runs, and partitions of one disk.
type disk struct {
	number linux.DeviceNumber
	seq    uint64
}

// history is what this process has seen of a device.
type history struct {
	looked time.Time
	// since is when each condition that there is now was first seen.
	since map[volume.Reason]time.Time
	// size is the largest that it, or the file that it shows, has had. Of a partition it
	// says nothing: what has its number now may be another.
	size uint64
	// errors are the I/O errors that the kernel has logged.
	errors ioErrors
	// commands and media are counters of SCSI commands that failed, and of NVMe's media
	// errors.
	commands, media counter
	// completed is what had ended when requests under way were first seen, at waiting.
	completed uint64
	waiting   time.Time
}

// ioErrors are the I/O errors of a disk.
type ioErrors struct {
	count         int
	began, latest time.Time
	// text is about the last.
	text string
}

// counter is a counter of errors that was there before this process.
type counter struct {
	known       bool
	first, last uint64
	// began and latest are when it was first and last seen to have grown.
	began, latest time.Time
}

// grown takes in what the counter is now, and reports whether it has grown of late.
func (c *counter) grown(value uint64, now time.Time) bool {
	if !c.known || value < c.last {
		*c = counter{known: true, first: value, last: value}
	}
	if value > c.last {
		c.last, c.latest = value, now
		if c.began.IsZero() {
			c.began = now
		}
	}
	if !c.latest.IsZero() && now.Sub(c.latest) > errorTime {
		*c = counter{known: true, first: value, last: value}
	}
	return !c.latest.IsZero()
}

func (c *counter) String() string {
	return fmt.Sprintf("%d since %s at the latest, the last by %s", c.last-c.first, stamp(c.began), stamp(c.latest))
}

// forgetTime is how long a device that is not looked at any more is remembered.
const forgetTime = 2 * errorTime

// history returns what is known of a device. The monitor's known is locked.
func (m *Monitor) history(number linux.DeviceNumber, seq uint64) *history {
	now := m.now()
	key := disk{number, seq}
	h := m.histories[key]
	if h == nil {
		for old, other := range m.histories {
			if now.Sub(other.looked) > forgetTime {
				delete(m.histories, old)
			}
		}
		h = &history{since: map[volume.Reason]time.Time{}}
		m.histories[key] = h
	}
	h.looked = now
	return h
}

// judge returns what is wrong with a device itself.
func (m *Monitor) judge(device Device, v *blockdev.Vitals) []volume.Condition {
	m.known.Lock()
	defer m.known.Unlock()
	now := m.now()
	h := m.history(device.Number, v.DiskSeq)
	var found []volume.Condition
	add := func(severity volume.Severity, reason volume.Reason, format string, args ...any) {
		found = append(found, volume.Condition{Severity: severity, Reason: reason, Message: v.Name + " " + fmt.Sprintf(format, args...)})
	}
	if severity, reason, text := judgeStates(v.States); reason != "" {
		add(severity, reason, "%s", text)
	}
	if v.Suspended {
		add(volume.Inaccessible, volume.DeviceBlocked, "is suspended, so all I/O waits; resume it (dmsetup resume) if nobody is changing it")
	}
	if v.ReadOnly && device.Writable {
		add(volume.Degraded, volume.DeviceReadOnly, "refuses writes; look in the kernel's log for why, and save the data: disks do so at the end of their life")
	}
	switch file := v.Backing; {
	case file != nil && file.Deleted:
		add(volume.DataLoss, volume.BackingDeleted, "shows the file %s, which has been deleted; its data goes with the device: copy it now, from within the pod or from /dev/%s", file.Path, v.Name)
	case file != nil && file.IsKnown:
		// Who has a loop device open can have it show less of its file, which loses nothing.
		if h.size = max(h.size, v.Size, file.Size); file.Size < h.size {
			add(volume.DataLoss, volume.SizeShrank, "shows the file %s, which has %d bytes, and has had %d; what lay behind is lost: restore it from a copy", file.Path, file.Size, h.size)
		}
	default:
		if h.size = max(h.size, v.Size); v.Size < h.size && !v.Partition {
			add(volume.DataLoss, volume.SizeShrank, "has %d bytes, and has had %d; what lay behind cannot be read: stop writing, and give the disk its size again where it comes from", v.Size, h.size)
		}
	}
	if errs := &h.errors; errs.count > 0 && now.Sub(errs.latest) <= errorTime {
		add(volume.Degraded, volume.IOErrors, "has returned I/O errors: %d or more since %s, the last at %s (%s)%s; the kernel's log has more; copy the data and replace the disk, or what leads to it, if they go on",
			errs.count, stamp(errs.began), stamp(errs.latest), errs.text, h.failedCommands(v, now))
	} else {
		h.failedCommands(v, now)
	}
	if h.stalled(v, now) {
		add(volume.Inaccessible, volume.IOStalled, "has had requests under way since %s, of which none has ended; the disk, or what leads to it, hangs: see the kernel's log", stamp(h.waiting))
	}
	return found
}

// failedCommands says how far SCSI's count of failed commands has grown of late. By
// itself it says little, see kernelLog.
func (h *history) failedCommands(v *blockdev.Vitals, now time.Time) string {
	if !v.HasErrors || !h.commands.grown(v.Errors, now) {
		return ""
	}
	return ", and SCSI commands have failed: " + h.commands.String()
}

// dated are the conditions that have times of their own.
var dated = []volume.Reason{volume.IOErrors, volume.IOStalled, volume.NVMeMediaErrors}

// date says of each condition of a device since when it was seen, and forgets those
// that are over.
func (m *Monitor) date(number linux.DeviceNumber, seq uint64, found []volume.Condition) []volume.Condition {
	m.known.Lock()
	defer m.known.Unlock()
	h, seen := m.history(number, seq), map[volume.Reason]time.Time{}
	for i := range found {
		reason := found[i].Reason
		if slices.Contains(dated, reason) {
			continue
		}
		since, known := h.since[reason]
		if !known {
			since = m.now()
		}
		seen[reason] = since
		found[i].Message += fmt.Sprintf(" (seen since %s)", stamp(since))
	}
	h.since = seen
	return found
}

// stalled reports whether requests have been under way for too long.
func (h *history) stalled(v *blockdev.Vitals, now time.Time) bool {
	if v.InFlight == 0 || h.waiting.IsZero() || v.Completed != h.completed {
		h.completed, h.waiting = v.Completed, time.Time{}
		if v.InFlight > 0 {
			h.waiting = now
		}
		return false
	}
	return now.Sub(h.waiting) >= stallTime
}

// What the states of SCSI devices and NVMe controllers mean, those that are no fault
// left out (drivers/scsi/scsi_sysfs.c, drivers/nvme/host/sysfs.c).
var states = map[string]volume.Reason{
	"offline": volume.DeviceOffline, "transport-offline": volume.DeviceOffline, "dead": volume.DeviceOffline,
	"cancel": volume.DeviceOffline, "deleted": volume.DeviceOffline, "deleting": volume.DeviceOffline, "deleting (no IO)": volume.DeviceOffline,
	"blocked": volume.DeviceBlocked, "created-blocked": volume.DeviceBlocked, "quiesce": volume.DeviceBlocked,
	"resetting": volume.DeviceBlocked, "connecting": volume.DeviceBlocked,
}

var stateRemedies = map[volume.Reason]string{
	volume.DeviceOffline: "the kernel has given it up after errors; replace the disk, or mend what leads to it and have the node look for it again",
	volume.DeviceBlocked: "I/O waits until it is back; see the kernel's log, and mend what leads to it if it stays so",
}

// judgeStates returns what is wrong with the ways to a disk. Where one of them works,
// so does the disk.
func judgeStates(found []string) (volume.Severity, volume.Reason, string) {
	var reason volume.Reason
	bad := 0
	for _, state := range found {
		if is := states[state]; is != "" {
			bad++
			if reason == "" || is == volume.DeviceOffline {
				reason = is
			}
		}
	}
	severity := volume.Degraded
	if bad == len(found) {
		severity = volume.Inaccessible
		if slices.ContainsFunc(found, func(state string) bool { return states[state] == volume.DeviceBlocked }) {
			reason = volume.DeviceBlocked // One that may come back.
		}
	}
	return severity, reason, fmt.Sprintf("is %s: %s", strings.Join(found, ", "), stateRemedies[reason])
}

// errorTarget is the type of a row of a mapping that fails all I/O
// (drivers/md/dm-target.c).
const errorTarget = "error"

// judgeMapping returns what is wrong with the table of a mapping.
func judgeMapping(number linux.DeviceNumber, v *blockdev.Vitals) []volume.Condition {
	if !v.Mapped {
		return nil
	}
	control, err := linux.OpenMapper()
	if err != nil {
		return []volume.Condition{Unknown(v.Name, err)}
	}
	defer control.Close()
	table, err := control.Table(number)
	if err != nil {
		return []volume.Condition{Unknown(v.Name, fmt.Errorf("read its table: %w", err))}
	}
	if !slices.ContainsFunc(table, func(row linux.MappingTarget) bool { return row.Type == errorTarget }) {
		return nil
	}
	return []volume.Condition{{
		Severity: volume.Inaccessible, Reason: volume.MappingFailed,
		Message: v.Name + " fails all I/O, or a part of it: its table has rows of the type error, as after a forced detach; delete the pods that use the volume, so that it is staged anew",
	}}
}
