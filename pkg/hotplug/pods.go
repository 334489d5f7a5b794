package hotplug

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// askingPods returns the running pods that ask for an attachment, in the order of
// their UIDs.
func (m *Manager) askingPods(ctx context.Context) ([]cri.Pod, error) {
	if m.runtime == nil || !m.attachmentPods {
		return nil, nil
	}
	pods, err := m.runtime.Pods(ctx)
	if err != nil {
		return nil, err
	}
	pods = slices.DeleteFunc(pods, func(pod cri.Pod) bool { return !pod.Ready || pod.Annotations[Annotation] == "" })
	slices.SortFunc(pods, func(a, b cri.Pod) int { return strings.Compare(a.UID, b.UID) })
	return pods, nil
}

// isWanted reports whether the volume of an attachment that a pod asked for is
// published for the pod still. That, and not whether the runtime knows the pod, is
// for how long the attachment lasts: kubelet may start a pod's sandbox anew, and
// the runtime may be away.
func (m *Manager) isWanted(one *record) (bool, error) {
	if one.Owner == "" {
		return true, nil
	}
	published, err := m.volumes.PublishedFor(one.Owner)
	_, wanted := published[one.Volume]
	return wanted, err
}

// adopt begins an attachment for a pod, unless there is one. Where it cannot be
// made, that is what is recorded, so that it can be seen.
func (m *Manager) adopt(ctx context.Context, pod cri.Pod) error {
	unlock, err := m.busy.lock(ctx, ownedID(pod.UID))
	if err != nil {
		return err
	}
	defer unlock()
	one := record{Attachment: Attachment{ID: ownedID(pod.UID), Owner: pod.UID}}
	if _, err := m.get(one.ID); !errors.Is(err, volume.ErrNotFound) {
		return err
	}
	published, err := m.volumes.PublishedFor(pod.UID)
	if err != nil {
		return err
	}
	if len(published) == 0 {
		// It is no pod of ours, or its volume is not published yet, or no more.
		return nil
	}
	one.Target, one.Path, one.ReadOnly, err = parseAnnotation(pod.Namespace, pod.Annotations[Annotation])
	if err == nil && len(published) > 1 {
		err = fmt.Errorf("%w: pod %s/%s has %d block volumes of this driver; an attachment pod has exactly one", volume.ErrInvalid, pod.Namespace, pod.Name, len(published))
	}
	one.Volume = slices.Sorted(maps.Keys(published))[0]
	one.ReadOnly = one.ReadOnly || published[one.Volume]
	if err != nil {
		one.Request = Request{Volume: one.Volume}
		return m.set(ctx, &one, Refused, err.Error())
	}
	return m.retry(ctx, &one)
}

// ownedID is the ID of the attachment of a pod: there is one at most.
func ownedID(uid string) string { return "pod-" + strings.ReplaceAll(uid, "/", "-") }

// retry attaches what is recorded, as a container runs now. Where that cannot be,
// it is recorded, and tried again later.
func (m *Manager) retry(ctx context.Context, one *record) error {
	if one.Check() != nil {
		return nil // So it was refused. The annotations of a pod that runs stay as they are.
	}
	unlock, err := m.lockVolume(one.Volume)
	if errors.Is(err, volume.ErrAborted) {
		return nil // The next time.
	}
	if err != nil {
		return err
	}
	defer unlock()
	found := &ends{}
	defer found.close()
	wanted := *one
	err = m.fill(ctx, &wanted, found)
	if err == nil {
		err = m.attach(ctx, &wanted, found)
	}
	switch {
	case err == nil:
		*one = wanted
		return nil
	case errors.Is(err, volume.ErrNotFound):
		return m.wait(ctx, one, err)
	case errors.Is(err, volume.ErrAborted):
		m.wakeLater()
		return m.set(ctx, one, Waiting, err.Error())
	case isRefusal(err):
		return m.set(ctx, one, Refused, err.Error())
	default:
		return errors.Join(err, m.set(ctx, one, Waiting, err.Error()))
	}
}

// wait records that an attachment waits for what was not found, unless that is a pod
// that is gone for good.
func (m *Manager) wait(ctx context.Context, one *record, reason error) error {
	if one.Owner == "" && one.Target.Pod != nil && m.runtime != nil {
		pods, err := m.runtime.Pods(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(pods, func(pod cri.Pod) bool { return pod.UID == one.Target.Pod.UID }) {
			return m.detach(ctx, one)
		}
	}
	return m.set(ctx, one, Waiting, reason.Error())
}

// isRefusal reports whether it is up to somebody to change something.
func isRefusal(err error) bool {
	return errors.Is(err, volume.ErrInvalid) || errors.Is(err, volume.ErrPrecondition) || errors.Is(err, volume.ErrInUse) || errors.Is(err, volume.ErrMismatch)
}
