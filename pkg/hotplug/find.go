package hotplug

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/process"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// container is a running container, held by the descriptor of its init process.
type container struct {
	process   *linux.Process
	processes process.Table
	cgroup    *devcgroup.Cgroup
	// id is the container's ID, empty where it has none that is known.
	id string
	// start is when the init process was started, in clock ticks since boot.
	start uint64
	// pod is the container's pod, nil where it was not found by one.
	pod *Pod
	// uid and gid are whom the init process runs as, rootUID and rootGID who is
	// root in the container, as the host counts.
	uid, gid, rootUID, rootGID uint32
	// foreign says that the container has a user namespace of its own.
	foreign bool
	// kept is how many more use it, and close it.
	kept atomic.Int32
}

// close closes the container, once all that use it have.
func (c *container) close() {
	if c.kept.Add(-1) >= 0 {
		return
	}
	if c.cgroup != nil {
		c.cgroup.Close()
	}
	c.process.Close()
}

// checkRunning returns an error where the container has ended. What was found out
// about its process before is true of it only if it has not. Errors:
// volume.ErrNotFound.
func (c *container) checkRunning() error {
	ended, err := c.process.Ended()
	if err != nil {
		return fmt.Errorf("see whether the container runs: %w", err)
	}
	if ended {
		return fmt.Errorf("%w: the container has ended (%s)", volume.ErrNotFound, c.process.Name())
	}
	return nil
}

// find returns the container that the target names; the caller closes it. Errors:
// volume.ErrNotFound where it does not run; volume.ErrInvalid where the target
// names several; volume.ErrPrecondition where it is no container.
func (m *Manager) find(ctx context.Context, target Target) (*container, error) {
	switch {
	case target.Pod != nil:
		return m.findPod(ctx, *target.Pod)
	case target.Container != "":
		pid, err := m.processes.Init(target.Container)
		if err != nil {
			return nil, err
		}
		return m.hold(pid, nil)
	default:
		pid, err := m.processes.InitOf(target.PID)
		if err != nil {
			return nil, err
		}
		return m.hold(pid, nil)
	}
}

// findPod asks the container runtime for a container of a pod.
func (m *Manager) findPod(ctx context.Context, pod Pod) (*container, error) {
	if m.runtime == nil {
		return nil, fmt.Errorf("%w: the plugin knows no container runtime, so it cannot find %s; set hotplug.criSocket in its configuration, or name the container by pid or ID", volume.ErrPrecondition, pod)
	}
	running, err := m.runtime.Containers(ctx)
	if err != nil {
		return nil, err
	}
	one, err := choose(running, pod)
	if err != nil {
		return nil, err
	}
	pid, err := m.runtime.PID(ctx, one.ID)
	if err != nil {
		return nil, err
	}
	found, err := m.hold(pid, &Pod{Namespace: one.PodNamespace, Name: one.PodName, UID: one.PodUID, Container: one.Name})
	if err != nil {
		return nil, err
	}
	// The number that the runtime told may be another's by now.
	if found.id != one.ID {
		found.close()
		return nil, fmt.Errorf("%w: process %d is of container %q, not %q, which has ended meanwhile", volume.ErrNotFound, pid, found.id, one.ID)
	}
	return found, nil
}

// choose returns the running container that is meant. Names are used again, so
// that where the UID is known only that counts.
func choose(running []cri.Container, pod Pod) (cri.Container, error) {
	var found []cri.Container
	var others []string
	for _, one := range running {
		if one.PodNamespace != pod.Namespace || one.PodName != pod.Name || pod.UID != "" && one.PodUID != pod.UID {
			continue
		}
		others = append(others, one.Name)
		if pod.Container == "" || one.Name == pod.Container {
			found = append(found, one)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return cri.Container{}, fmt.Errorf("%w: pod %s has the running containers %s; name one of them, and the UID of the pod where there are two of that name", volume.ErrInvalid, pod, strings.Join(others, ", "))
	case len(others) > 0:
		return cri.Container{}, fmt.Errorf("%w: no container %s runs in pod %s/%s on this node; there run %s", volume.ErrNotFound, pod.Container, pod.Namespace, pod.Name, strings.Join(others, ", "))
	default:
		return cri.Container{}, fmt.Errorf("%w: no container of pod %s%s runs on this node", volume.ErrNotFound, pod, suffix(" with UID ", pod.UID))
	}
}

func suffix(text, value string) string {
	if value == "" {
		return ""
	}
	return text + value
}

// hold holds the container whose init process has the number, and finds out what
// there is to know about it.
func (m *Manager) hold(pid int, pod *Pod) (*container, error) {
	held, err := linux.OpenProcess(pid)
	if errors.Is(err, syscall.ESRCH) {
		return nil, fmt.Errorf("%w: process %d has ended", volume.ErrNotFound, pid)
	}
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	found := &container{process: held, processes: m.processes, pod: pod}
	err = m.learn(found)
	// An error of a process that ended meanwhile says nothing more.
	if err := errors.Join(found.checkRunning(), err); err != nil {
		found.close()
		return nil, err
	}
	return found, nil
}

func (m *Manager) learn(c *container) error {
	pid := c.process.PID()
	own, err := m.processes.SharesMounts(pid)
	if err != nil {
		return err
	}
	if own {
		return fmt.Errorf("%w: process %d is in no container: it has the mount namespace of the host (or the container is still being started: try again)", volume.ErrPrecondition, pid)
	}
	if c.id, err = m.processes.ContainerOf(pid); err != nil {
		return err
	}
	if c.start, err = m.processes.StartTime(pid); err != nil {
		return err
	}
	if c.uid, c.gid, err = m.processes.Owner(pid); err != nil {
		return err
	}
	if c.rootUID, c.rootGID, c.foreign, err = m.processes.Root(pid); err != nil {
		return err
	}
	c.cgroup, err = devcgroup.Open(m.hierarchies, pid, c.id)
	return err
}

// holdAgain holds the container of a record, nil where it has ended.
func (m *Manager) holdAgain(one record) (*container, error) {
	if one.PID == 0 {
		return nil, nil //nolint:nilnil // No container is an answer.
	}
	if err := m.records.checkVisible(one); err != nil {
		return nil, err
	}
	found, err := m.hold(one.PID, one.Target.Pod)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil //nolint:nilnil // No container is an answer.
	}
	if err != nil {
		return nil, err
	}
	if found.start != one.StartTime {
		found.close()
		return nil, nil //nolint:nilnil // The number is another process's.
	}
	return found, nil
}
