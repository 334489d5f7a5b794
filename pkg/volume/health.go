package volume

import "slices"

// Severity is how bad a condition is for who uses a volume. The meanings are those
// of VolumeHealthErrorType in the CSI specification 1.13.
type Severity int

// The severities, from the least.
const (
	// Degraded: the volume can be used, but is not as it should be.
	Degraded Severity = iota + 1
	// Inaccessible: the volume cannot be read and written now.
	Inaccessible
	// DataLoss: data is lost, or about to be.
	DataLoss
)

// Condition is something that is wrong with a volume, a device or a pool.
type Condition struct {
	Severity Severity
	Reason   Reason
	// Message says what was seen, of which device, and what to do.
	Message string
}

// Reason is the word for a condition, for programs: docs/reference/health.md has
// what each means. It must never change its meaning.
type Reason string

// The reasons of devices.
const (
	DeviceGone      Reason = "DeviceGone"
	DeviceReplaced  Reason = "DeviceReplaced"
	DeviceOffline   Reason = "DeviceOffline"
	DeviceBlocked   Reason = "DeviceBlocked"
	DeviceReadOnly  Reason = "DeviceReadOnly"
	SizeShrank      Reason = "SizeShrank"
	IOErrors        Reason = "IOErrors"
	IOStalled       Reason = "IOStalled"
	MappingFailed   Reason = "MappingFailed"
	BackingDeleted  Reason = "BackingDeleted"
	DeviceChanged   Reason = "DeviceChanged"
	NVMeSpareLow    Reason = "NVMeSpareLow"
	NVMeTemperature Reason = "NVMeTemperature"
	NVMeUnreliable  Reason = "NVMeUnreliable"
	NVMeReadOnly    Reason = "NVMeReadOnly"
	NVMeUnprotected Reason = "NVMeUnprotected"
	NVMeWornOut     Reason = "NVMeWornOut"
	NVMeMediaErrors Reason = "NVMeMediaErrors"
)

// The reasons of pools, and of the volumes in them.
const (
	PoolFilling    Reason = "PoolFilling"
	PoolFull       Reason = "PoolFull"
	PoolReadOnly   Reason = "PoolReadOnly"
	PoolErrors     Reason = "PoolErrors"
	RecordDamaged  Reason = "RecordDamaged"
	DiskGone       Reason = "DiskGone"
	DiskRefused    Reason = "DiskRefused"
	WipeFailing    Reason = "WipeFailing"
	ReclaimPending Reason = "ReclaimPending"
)

// The reasons of neither.
const (
	AttachmentLost Reason = "AttachmentLost"
	NotAnswering   Reason = "NotAnswering"
	CheckFailed    Reason = "CheckFailed"
)

// Reasons returns all reasons that there are.
func Reasons() []Reason {
	return []Reason{
		DeviceGone, DeviceReplaced, DeviceOffline, DeviceBlocked, DeviceReadOnly, SizeShrank, IOErrors, IOStalled,
		MappingFailed, BackingDeleted, DeviceChanged, NVMeSpareLow, NVMeTemperature, NVMeUnreliable, NVMeReadOnly, NVMeUnprotected,
		NVMeWornOut, NVMeMediaErrors,
		PoolFilling, PoolFull, PoolReadOnly, PoolErrors, RecordDamaged, DiskGone, DiskRefused, WipeFailing, ReclaimPending,
		AttachmentLost, NotAnswering, CheckFailed,
	}
}

// MergeConditions returns the conditions with the worst first, and those of one
// severity and reason made one, with the messages of all: nobody may be told of two
// (CSI specification 1.13, VolumeHealthEntry). It changes none of them.
func MergeConditions(conditions []Condition) []Condition {
	var merged []Condition
	for i, condition := range conditions {
		if slices.Contains(conditions[:i], condition) {
			continue
		}
		same := slices.IndexFunc(merged, func(c Condition) bool {
			return c.Severity == condition.Severity && c.Reason == condition.Reason
		})
		if same < 0 {
			merged = append(merged, condition)
			continue
		}
		merged[same].Message += "; " + condition.Message
	}
	slices.SortStableFunc(merged, func(a, b Condition) int { return int(b.Severity - a.Severity) })
	return merged
}
