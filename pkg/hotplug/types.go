package hotplug

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Request asks for a device to be attached.
type Request struct {
	// Device is the path of the device's node on the host. Either it or Volume is
	// set.
	Device string `json:"device,omitempty"`
	// Volume is the volume_id of a volume that is staged on this node.
	Volume string `json:"volume,omitempty"`
	// Target is the container.
	Target Target `json:"target"`
	// Path is where the device's node is made in the container.
	Path string `json:"path"`
	// ReadOnly lets the container read only.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Shared allows that the device is attached elsewhere as well.
	Shared bool `json:"shared,omitempty"`
	// Restore has the device attached again when the container is restarted: to that
	// with the same ID, or of the same name in the same pod. A pod that is made anew
	// is another.
	Restore bool `json:"restore,omitempty"`
}

// Target names a running container: by exactly one of its fields.
type Target struct {
	// PID is any process of the container, as the host counts.
	PID int `json:"pid,omitempty"`
	// Container is the container's ID, or the beginning of it.
	Container string `json:"container,omitempty"`
	// Pod is the container's pod in Kubernetes.
	Pod *Pod `json:"pod,omitempty"`
}

// Pod names a container of a pod.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// UID is that of the pod; empty in a request: the one of that name that runs.
	UID string `json:"uid,omitempty"`
	// Container is the container's name; empty in a request: the only one.
	Container string `json:"container,omitempty"`
}

func (p Pod) String() string {
	return strings.TrimRight(p.Namespace+"/"+p.Name+"/"+p.Container, "/")
}

func (t Target) String() string {
	switch {
	case t.Pod != nil:
		return "pod " + t.Pod.String()
	case t.Container != "":
		return "container " + t.Container
	case t.PID != 0:
		return fmt.Sprintf("process %d", t.PID)
	default:
		return "nothing"
	}
}

// State is what has become of an attachment.
type State string

// The states of an attachment.
const (
	// Pending: being made. After a crash it is undone, or made anew.
	Pending State = "Pending"
	// Attached: the container can open the device.
	Attached State = "Attached"
	// Waiting: to be attached again once the container runs again.
	Waiting State = "Waiting"
	// Detaching: being taken away.
	Detaching State = "Detaching"
	// Held: the container can no longer open the device, but what it has open
	// goes on working. The device is not released until that is closed.
	Held State = "Held"
	// Lost: the device has gone from the node.
	Lost State = "Lost"
	// Refused: cannot be made as it is wanted; Reason says why.
	Refused State = "Refused"
	// Detached: is no more, and nothing is recorded of it.
	Detached State = "Detached"
)

// Attachment is a device in a running container.
type Attachment struct {
	// ID names the attachment on this node.
	ID string `json:"id"`
	// Request is what was asked for, with the names of the pod resolved.
	Request
	// Owner is the UID of the pod that asks for it, if one does.
	Owner string `json:"owner,omitempty"`
	// State is what has become of it.
	State State `json:"state"`
	// Reason says why it is in a state other than Attached, and what to do.
	Reason string `json:"reason,omitempty"`
	// Since is when it came into the state.
	Since time.Time `json:"since"`
	// Number is the device's number, MAJOR:MINOR.
	Number string `json:"number,omitempty"`
	// View is the number of the read-only view of the device that the container has in
	// place of it, where it was attached read-only.
	View string `json:"view,omitempty"`
	// DiskSeq is the sequence number of the disk (blockdev.Device.DiskSeq).
	DiskSeq uint64 `json:"diskSeq,omitempty"`
	// Size is the size of the device in bytes.
	Size uint64 `json:"size,omitempty"`
	// ContainerID is the ID of the container, if it has one.
	ContainerID string `json:"containerID,omitempty"`
	// PID is the init process of the container, as the host counts, and StartTime
	// when it was started, in clock ticks since boot: the two name a process.
	PID       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"startTime,omitempty"`
	// Holders are the processes that have the device open, where it is Held.
	Holders []Holder `json:"holders,omitempty"`
}

// Holder is a process that has a device open or mapped.
type Holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	// Unknown is what it has open that may be the device, where it is not known to be.
	Unknown string `json:"unknown,omitempty"`
}

// Plan is what Attach would do.
type Plan struct {
	// Attachment is what would be made.
	Attachment Attachment `json:"attachment"`
	// Steps say in words what would be done, in this order.
	Steps []string `json:"steps"`
}

// Check returns an error for a request that can never be fulfilled. Errors:
// volume.ErrInvalid.
func (r Request) Check() error {
	if (r.Device == "") == (r.Volume == "") {
		return fmt.Errorf("%w: device is %q and volume is %q; set one of them", volume.ErrInvalid, r.Device, r.Volume)
	}
	if r.Device != "" && !path.IsAbs(r.Device) {
		return fmt.Errorf("%w: device is %q; expected an absolute path such as /dev/disk/by-id/NAME", volume.ErrInvalid, r.Device)
	}
	if err := r.Target.check(); err != nil {
		return err
	}
	if r.Restore && r.Target.PID != 0 {
		return fmt.Errorf("%w: restore is set, but target.pid names a process, which never comes back; name the container by its ID or its pod", volume.ErrInvalid)
	}
	return checkPath(r.Path)
}

func (t Target) check() error {
	named := 0
	for _, set := range []bool{t.PID != 0, t.Container != "", t.Pod != nil} {
		if set {
			named++
		}
	}
	switch {
	case named != 1:
		return fmt.Errorf("%w: target names %d containers; set exactly one of pid, container and pod", volume.ErrInvalid, named)
	case t.PID < 0:
		return fmt.Errorf("%w: target.pid is %d; expected the number of a process", volume.ErrInvalid, t.PID)
	case t.Pod != nil && (t.Pod.Namespace == "" || t.Pod.Name == ""):
		return fmt.Errorf("%w: target.pod is %q; expected a namespace and a name", volume.ErrInvalid, t.Pod)
	}
	return nil
}

// maxPath is the longest path in bytes, with its final zero (PATH_MAX in
// linux/limits.h).
const maxPath = 4096

// checkPath checks the path in a container: a plain one, so that the record and
// what is in the container have one name for it.
func checkPath(p string) error {
	switch {
	case !path.IsAbs(p) || path.Clean(p) != p || p == "/" || len(p) >= maxPath:
		return fmt.Errorf("%w: path is %q; expected a plain absolute path in the container, such as /dev/xvdb", volume.ErrInvalid, p)
	case strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%w: path is %q; it must not contain control characters", volume.ErrInvalid, p)
	}
	return nil
}
