package hotplug

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Reconcile makes true what is recorded: it undoes what a crash left half done,
// gives back what was taken from containers, goes on with what waits, follows the
// attachment pods, and takes away what nothing is recorded of. It may be called
// at any time. What fails does not keep it from the rest.
func (m *Manager) Reconcile(ctx context.Context) error {
	return errors.Join(m.follow(ctx), m.sweep(ctx))
}

// follow does all of that but to look for what nothing is recorded of, which looks
// at every cgroup of the node.
func (m *Manager) follow(ctx context.Context) error {
	// The runtime may take its time. Nobody is kept waiting for it.
	pods, err := m.askingPods(ctx)
	failed := []error{err}
	all, err := m.records.all()
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	failed = append(failed, m.reconcileAll(ctx, all)...)
	for _, pod := range pods {
		if err := m.patiently(pod.UID, func() error { return m.adopt(ctx, pod) }); err != nil {
			failed = append(failed, fmt.Errorf("attachment pod %s/%s: %w", pod.Namespace, pod.Name, err))
		}
	}
	all, err = m.records.all()
	m.metrics.set(all)
	return errors.Join(append(failed, err)...)
}

// atOnce is how many attachments are reconciled at once: each can be delayed by its
// container.
const atOnce = 8

func (m *Manager) reconcileAll(ctx context.Context, all []record) []error {
	failed, slots := make([]error, len(all)), make(chan struct{}, atOnce)
	var group sync.WaitGroup
	for i, one := range all {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := m.patiently(one.ID, func() error { return m.reconcileID(ctx, one.ID) }); err != nil {
				failed[i] = fmt.Errorf("attachment %s: %w", one.ID, err)
			}
		})
	}
	group.Wait()
	return failed
}

// patiently waits for a part of the reconciling as long as the others may wait for it: who
// has a read-only view decides whether its driver answers. It goes on meanwhile, and is not
// begun anew.
func (m *Manager) patiently(what string, f func() error) error {
	err := m.reconciling.Run(what, f)
	if errors.Is(err, linux.ErrStuck) {
		err = fmt.Errorf("%w; it goes on once it does: see what the container runs, or end it", err)
	}
	return err
}

// reconcileID reconciles the attachment, if it is still there.
func (m *Manager) reconcileID(ctx context.Context, id string) error {
	return m.withLocked(ctx, id, func(one *record) error {
		err := m.reconcile(ctx, one)
		if one.State == Held && errors.Is(err, volume.ErrInUse) {
			return nil // That is what its record says.
		}
		return err
	})
}

func (m *Manager) reconcile(ctx context.Context, one *record) error {
	wanted, err := m.isWanted(one)
	if err != nil {
		return err
	}
	if !wanted {
		return m.detach(ctx, one)
	}
	switch one.State {
	case Attached:
		return m.verify(ctx, one)
	case Waiting, Refused:
		return m.retry(ctx, one)
	case Lost:
		return m.detachLost(ctx, one)
	case Pending, Detaching, Held:
		return m.detach(ctx, one)
	default:
		return fmt.Errorf("%w: it is recorded with the state %q", volume.ErrInvalid, one.State)
	}
}

// verify sees that what is attached is so still.
func (m *Manager) verify(ctx context.Context, one *record) error {
	number, err := linux.ParseDeviceNumber(one.Number)
	if err != nil {
		return err
	}
	granted, err := one.grantedNumber()
	if err != nil {
		return err
	}
	container, err := m.holdAgain(*one)
	if err != nil {
		return err
	}
	if container == nil {
		return m.ended(ctx, one)
	}
	defer container.close()
	device, err := m.reachable(number, one.DiskSeq)
	if err != nil {
		return err
	}
	if device == nil {
		// The number may soon be another disk's, which the container must not have.
		return errors.Join(m.takeAway(ctx, one, container),
			m.set(ctx, one, Lost, "the disk has gone from the node; detach it, and attach it anew when it is back"))
	}
	m.keepOpen(one, device)
	err = m.checkGranted(one, device)
	if errors.Is(err, volume.ErrMismatch) || errors.Is(err, volume.ErrIncompatible) {
		// Whose the number is now, nobody can tell.
		return errors.Join(m.takeAway(ctx, one, container), m.set(ctx, one, Lost, err.Error()+"; detach it, and attach it anew"))
	}
	if err != nil {
		return err
	}
	return m.restore(ctx, one, granted, container)
}

// ended deals with an attachment whose container has ended, and its access and
// node with it.
func (m *Manager) ended(ctx context.Context, one *record) error {
	if !one.Restore && one.Owner == "" {
		return m.detach(ctx, one)
	}
	// The device stays open, so that its number stays its own.
	if err := m.set(ctx, one, Waiting, "the container has ended"); err != nil {
		return err
	}
	return m.retry(ctx, one)
}

// detachLost forgets an attachment whose disk has gone once its container has
// ended; until then it is to be seen.
func (m *Manager) detachLost(ctx context.Context, one *record) error {
	m.closeDevice(one.ID)
	container, err := m.holdAgain(*one)
	if err != nil {
		return err
	}
	if container == nil {
		return m.detach(ctx, one)
	}
	defer container.close()
	return m.takeAway(ctx, one, container)
}

// restore gives back to a container what was taken from it: systemd takes grants
// that it does not know of, and a program may have removed the node.
func (m *Manager) restore(ctx context.Context, one *record, number linux.DeviceNumber, container *container) error {
	allowed, err := container.cgroup.Allows(number, one.access())
	if err != nil {
		return err
	}
	if !allowed {
		klog.FromContext(ctx).Info("A grant was lost, granting it again", "attachment", one.ID, "device", one.Number, "cgroup", container.cgroup.String())
		m.metrics.restored.Inc()
	}
	// Also where it is allowed: a cgroup below the container's may lack it.
	if err := m.grant(ctx, container, number, one.access()); err != nil {
		return err
	}
	node, err := m.makeNode(container, one.Path, number)
	reason := ""
	if errors.Is(err, volume.ErrPrecondition) || errors.Is(err, linux.ErrStuck) {
		// The container has put something else there, or closed the directory, or its
		// filesystem hangs.
		node, reason, err = one.Node, err.Error(), nil
	}
	if err != nil || node == one.Node && reason == one.Reason {
		return err
	}
	one.Node = node
	return m.set(ctx, one, Attached, reason)
}

// sweep takes away every access that was granted and that no record tells of: the
// directory of the records may have been lost.
func (m *Manager) sweep(ctx context.Context) error {
	granted, err := devcgroup.Granted(m.hierarchies)
	if err != nil {
		return err
	}
	var failed []error
	for _, cgroup := range granted {
		failed = append(failed, m.sweepCgroup(ctx, cgroup))
		cgroup.Close()
	}
	return errors.Join(failed...)
}

// sweepCgroup does so for one cgroup. What is granted meanwhile was recorded before.
func (m *Manager) sweepCgroup(ctx context.Context, cgroup *devcgroup.Cgroup) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	grants, err := cgroup.Grants()
	if err != nil || len(grants) == 0 {
		return err
	}
	all, err := m.records.all()
	if err != nil {
		return err
	}
	var failed []error
	for _, grant := range grants {
		known, err := m.knows(cgroup, grant.Number, all)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if known {
			continue
		}
		klog.FromContext(ctx).Info("A container may open a device of which nothing is recorded, taking it away",
			"cgroup", cgroup.String(), "device", grant.Number)
		failed = append(failed, cgroup.Revoke(ctx, grant.Number))
	}
	return errors.Join(failed...)
}

// knows reports whether a record tells that the cgroup has the device.
func (m *Manager) knows(cgroup *devcgroup.Cgroup, number linux.DeviceNumber, all []record) (bool, error) {
	for _, one := range all {
		if granted, err := one.grantedNumber(); err != nil || granted != number || one.State != Attached && one.State != Detaching && one.State != Pending {
			continue
		}
		container, err := m.holdAgain(one)
		if err != nil {
			return false, err
		}
		if container == nil {
			continue
		}
		same := container.cgroup.Covers(cgroup)
		container.close()
		if same {
			return true, nil
		}
	}
	return false, nil
}
