package hotplug

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// ends are the two things that an attachment joins, both held open.
type ends struct {
	device    *blockdev.Device
	container *container
}

func (e *ends) close() {
	if e.container != nil {
		e.container.close()
	}
	if e.device != nil {
		e.device.Close()
	}
}

// Attach gives a device to a running container. When it returns, the container
// can open it. It may be repeated: what is attached as asked for is returned.
// What was done is undone where it fails, or where the plugin dies on the way.
//
// Errors: volume.ErrInvalid for a field; volume.ErrNotFound where there is no
// such device or container; volume.ErrInUse where the device is in use;
// volume.ErrPrecondition where the container cannot have it so, and why;
// volume.ErrAborted while a CSI call for the volume is under way.
func (m *Manager) Attach(ctx context.Context, request Request) (Attachment, error) {
	unlock, err := m.lockVolume(request.Volume)
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	// The same again finds what the first call has made.
	unlockTarget, err := m.busy.lock(ctx, fmt.Sprintf("to %s at %s", request.Target, request.Path))
	if err != nil {
		return Attachment{}, err
	}
	defer unlockTarget()
	one, ends, err := m.prepare(ctx, request)
	if err != nil {
		return Attachment{}, err
	}
	defer ends.close()
	if one.State == Attached {
		return one.Attachment, nil
	}
	one.ID = strings.ToLower(rand.Text()[:8])
	unlockID, err := m.busy.lock(ctx, one.ID)
	if err != nil {
		return Attachment{}, err
	}
	defer unlockID()
	return one.Attachment, m.attach(ctx, &one, ends)
}

// Plan returns what Attach would do, and does nothing. Errors: those of Attach.
func (m *Manager) Plan(ctx context.Context, request Request) (Plan, error) {
	one, ends, err := m.prepare(ctx, request)
	if err != nil {
		return Plan{}, err
	}
	defer ends.close()
	if one.State == Attached {
		return Plan{one.Attachment, []string{"nothing: it is attached already"}}, nil
	}
	allowed, err := ends.container.cgroup.Allows(ends.device.Number(), one.access())
	if err != nil {
		return Plan{}, err
	}
	grant := fmt.Sprintf("let the container open device %s with access %s, in %s", one.Number, one.access(), ends.container.cgroup)
	if one.ReadOnly {
		grant = fmt.Sprintf("make a read-only view of device %s, and let the container open that one for reading, in %s", one.Number, ends.container.cgroup)
	} else if allowed {
		grant = fmt.Sprintf("grant nothing: by its own rules the container may open device %s already", one.Number)
	}
	return Plan{one.Attachment, []string{
		"record that it is wanted, in " + m.records.dir,
		"see that nothing else uses " + ends.device.String(),
		grant,
		fmt.Sprintf("make the node %s in the container, for user %d and group %d", one.Path, ends.container.uid, ends.container.gid),
	}}, nil
}

// prepare opens both ends of an attachment and checks that they can be joined. It
// returns the attachment that is there already, where there is one.
func (m *Manager) prepare(ctx context.Context, request Request) (record, *ends, error) {
	if err := request.Check(); err != nil {
		return record{}, nil, err
	}
	one := record{Attachment: Attachment{Request: request}}
	found := &ends{}
	err := m.fill(ctx, &one, found)
	if err != nil {
		found.close()
		return record{}, nil, err
	}
	return one, found, nil
}

func (m *Manager) fill(ctx context.Context, one *record, ends *ends) (err error) {
	if ends.device, err = m.open(*one); err != nil {
		return err
	}
	if ends.container, err = m.find(ctx, one.Target); err != nil {
		return err
	}
	one.bind(ends)
	all, err := m.records.all()
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.State == Attached && other.isSame(*one) {
			*one = other
			return nil
		}
	}
	if err := checkExclusive(*one, all); err != nil {
		return err
	}
	return m.checkJoin(*one, ends)
}

// bind writes down what the two ends are.
func (r *record) bind(ends *ends) {
	device, container := ends.device, ends.container
	r.Number, r.DiskSeq, r.Size = device.Number().String(), device.DiskSeq(), device.Size()
	r.ContainerID, r.PID, r.StartTime = container.id, container.process.PID(), container.start
	if container.pod == nil {
		return
	}
	pod := *container.pod
	if r.Owner != "" {
		// The name in the annotation is that of whatever pod has it, unless it says more.
		pod.UID = r.Target.Pod.UID
	}
	r.Target.Pod = &pod
}

// isSame reports whether the record is what is asked for, whatever name the device and
// the container have in the request.
func (r record) isSame(wanted record) bool {
	return r.Number == wanted.Number && r.DiskSeq == wanted.DiskSeq && r.isSameContainer(wanted) &&
		r.Path == wanted.Path && r.ReadOnly == wanted.ReadOnly && r.Owner == wanted.Owner &&
		r.Volume == wanted.Volume && r.Shared == wanted.Shared && r.Restore == wanted.Restore
}

func (r record) isSameContainer(other record) bool {
	return r.PID == other.PID && r.StartTime == other.StartTime
}

func (r record) access() devcgroup.Access {
	if r.ReadOnly {
		return devcgroup.Read
	}
	return devcgroup.Read | devcgroup.Write
}

// checkJoin returns an error where the container cannot have the device as asked
// for.
func (m *Manager) checkJoin(one record, ends *ends) error {
	if err := m.at(ends.container, one.Path, place.checkVacant); err != nil {
		return err
	}
	if one.ReadOnly {
		writable, err := ends.container.cgroup.Allows(ends.device.Number(), devcgroup.Write)
		if err != nil {
			return err
		}
		if writable {
			return fmt.Errorf("%w: the container may write to device %s by its own rules (is it privileged?), so it cannot be attached read-only", volume.ErrPrecondition, one.Number)
		}
		return nil
	}
	readOnly, err := ends.device.ReadOnly()
	if err == nil && readOnly {
		err = fmt.Errorf("%w: %s is read-only; attach it read-only, or make it writable", volume.ErrPrecondition, ends.device)
	}
	return err
}

// attach joins the two ends: what is wanted is recorded first, and the node is
// made last. The caller has the attachment locked.
func (m *Manager) attach(ctx context.Context, one *record, ends *ends) error {
	one.Claimed = one.Volume == ""
	if err := m.begin(ctx, one); err != nil {
		return err
	}
	if err := m.claim(*one, ends.device); err != nil {
		return errors.Join(err, m.forget(ctx, one))
	}
	err := m.provide(ctx, one, ends.device)
	if err == nil {
		err = m.join(ctx, one, ends)
	}
	if err == nil {
		err = m.set(ctx, one, Attached, "")
	}
	if err != nil {
		// An error of a container that has ended meanwhile says nothing more.
		if ended := ends.container.checkRunning(); errors.Is(ended, volume.ErrNotFound) {
			err = ended
		}
		// The caller may be gone, which is no reason to leave half of it.
		return errors.Join(err, m.undo(context.WithoutCancel(ctx), one, ends.container))
	}
	m.keepOpen(one, ends.device)
	ends.device = nil
	return nil
}

// begin records that the attachment is being made, if nobody has the device meanwhile:
// whoever comes second sees the record of the first.
func (m *Manager) begin(ctx context.Context, one *record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	all, err := m.records.all()
	if err != nil {
		return err
	}
	if err := checkExclusive(*one, all); err != nil {
		return err
	}
	return m.set(ctx, one, Pending, "")
}

func (m *Manager) join(ctx context.Context, one *record, ends *ends) error {
	number, err := one.grantedNumber()
	if err != nil {
		return err
	}
	if err := m.grant(ctx, ends.container, number, one.access()); err != nil {
		return err
	}
	crashpoint.Here("access granted")
	if one.Node, err = m.makeNode(ends.container, one.Path, number); err != nil {
		return err
	}
	return ends.container.checkRunning()
}

func (m *Manager) grant(ctx context.Context, container *container, number linux.DeviceNumber, access devcgroup.Access) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return container.cgroup.Allow(ctx, number, access)
}
