package health

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// smartAge is how old a SMART log may be: the volumes of one disk share one.
const smartAge = 30 * time.Second

// smartKey is a controller, by its name, of the disk with a sequence number.
type smartKey struct {
	controller string
	seq        uint64
}

// smartLog is an answer of a controller.
type smartLog struct {
	read time.Time
	log  []byte
	err  error
}

// warnings are the bits of the critical warning (NVM Express base specification 2.0,
// figure 207). Bit 5 is about the persistent memory region, in which no volume is.
var warnings = []struct {
	bit    byte
	reason volume.Reason
	text   string
}{
	{1 << 0, volume.NVMeSpareLow, "has less spare capacity than its maker's threshold; replace the disk soon"},
	{1 << 1, volume.NVMeTemperature, "is hotter or colder than its maker's threshold; see to the cooling of the node"},
	{1 << 2, volume.NVMeUnreliable, "is no longer reliable, by its own account, after errors of its media; save the data and replace the disk"},
	{1 << 3, volume.NVMeReadOnly, "has made its media read-only; save the data and replace the disk"},
	{1 << 4, volume.NVMeUnprotected, "has lost the backup power of its volatile memory, so a power cut can lose what was written; replace the disk"},
}

// Where the log has what is judged (the same figure).
const (
	smartWarning = 0
	smartUsed    = 5
	smartMedia   = 160
	smartLength  = 512
)

// wornOut is how much of its life a disk may have used, in percent of what its maker
// states.
const wornOut = 100

// judgeSMART returns what the controllers of an NVMe disk say of it. One that the
// kernel does not hold for live is not asked.
func (m *Monitor) judgeSMART(number linux.DeviceNumber, v *blockdev.Vitals) []volume.Condition {
	for i, controller := range v.Controllers {
		if v.States[i] != "live" {
			continue
		}
		answer := m.askSMART(smartKey{controller, v.DiskSeq})
		if errors.As(answer.err, new(*linux.NVMeError)) || errors.Is(answer.err, volume.ErrNotFound) {
			continue // It has no such log, or has just gone.
		}
		// The name could have become another controller's.
		if now, err := m.sysfs.Vitals(number); err != nil || now.DiskSeq != v.DiskSeq || !slices.Equal(now.Controllers, v.Controllers) {
			continue
		}
		if answer.err != nil {
			return []volume.Condition{Unknown(v.Name, answer.err)}
		}
		return m.judgeLog(number, v, answer.log) // The others lead to the same disk.
	}
	return nil
}

// askSMART returns the log of a controller, as it was a moment ago.
func (m *Monitor) askSMART(key smartKey) smartLog {
	m.known.Lock()
	answer, known := m.logs[key]
	m.known.Unlock()
	if known && m.now().Sub(answer.read) < smartAge {
		return answer
	}
	log, err := m.smart(key.controller)
	if err == nil && len(log) < smartLength {
		err = fmt.Errorf("the SMART log of %s has %d bytes, not %d", key.controller, len(log), smartLength)
	}
	answer = smartLog{m.now(), log, err}
	m.known.Lock()
	defer m.known.Unlock()
	maps.DeleteFunc(m.logs, func(_ smartKey, old smartLog) bool { return answer.read.Sub(old.read) >= smartAge })
	m.logs[key] = answer
	return answer
}

func (m *Monitor) readSMART(name string) ([]byte, error) {
	controller, err := m.sysfs.OpenController(name)
	if err != nil {
		return nil, err
	}
	defer controller.Close()
	return linux.NVMeSMARTLog(controller)
}

func (m *Monitor) judgeLog(number linux.DeviceNumber, v *blockdev.Vitals, log []byte) []volume.Condition {
	var found []volume.Condition
	add := func(reason volume.Reason, format string, args ...any) {
		found = append(found, volume.Condition{Severity: volume.Degraded, Reason: reason, Message: v.Name + " " + fmt.Sprintf(format, args...)})
	}
	for _, warning := range warnings {
		if log[smartWarning]&warning.bit != 0 {
			add(warning.reason, "%s", warning.text)
		}
	}
	if used := log[smartUsed]; used >= wornOut {
		add(volume.NVMeWornOut, "has used %d %% of the life that its maker states; plan its replacement", used)
	}
	m.known.Lock()
	defer m.known.Unlock()
	// The lower half of a number of 128 bits: the upper one is not reached.
	media := binary.LittleEndian.Uint64(log[smartMedia:])
	if h := m.history(number, v.DiskSeq); h.media.grown(media, m.now()) {
		add(volume.NVMeMediaErrors, "has errors of its media that it could not correct: %s; verify the data and replace the disk", &h.media)
	}
	return found
}
