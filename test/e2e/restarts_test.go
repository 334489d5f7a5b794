package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

// writing writes a number to the device, each time another one, by a descriptor that
// it opens anew and one that it has from the start, reads it back, and prints it;
// and says ERROR wherever that fails.
const writing = `
exec 3<>/dev/xvda
n=0
while :; do
  n=$((n+1))
  number=$(printf '%0512d' $n)
  message=$(printf "$number" | dd of=/dev/xvda bs=512 count=1 conv=fsync 2>&1) || echo "ERROR write $n: $message"
  back=$(head -c 512 /dev/xvda 2>&1) || echo "ERROR read $n: $back"
  [ "$back" = "$number" ] || echo "ERROR wrote $n, read $back"
  printf "$number" >&3 || echo "ERROR write $n by a descriptor from the start"
  echo $n
  sleep 0.05
done 2>&1`

// last is the last number that a pod that is writing has written.
func (p *pod) last(ctx context.Context) (int, error) {
	log, err := p.log(ctx)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(strings.TrimSpace(log), "\n")
	number, _ := strconv.Atoi(lines[len(lines)-1]) // Another line: an error, which is found later.
	return number, nil
}

// wantWriting waits until the pod has written more, and fails the test where it
// ever failed to.
func (p *pod) wantWriting() {
	p.Helper()
	first := -1
	p.until("the pod writes on", func(ctx context.Context) (bool, error) {
		last, err := p.last(ctx)
		if err == nil && first < 0 {
			first = last
		}
		return err == nil && last > first+2, err
	})
	log, err := p.log(p.Context())
	must(p, err)
	for line := range strings.Lines(log) {
		if strings.Contains(line, "ERROR") {
			p.Error(strings.TrimSpace(line))
		}
	}
}

// killPlugin kills the plugin's process on the node, and waits for the next one.
func (n node) killPlugin(s *scene) {
	s.Helper()
	before, err := n.plugin(s.Context(), s)
	must(s, err)
	// The node has a PID namespace of its own: no other plugin is seen.
	n.mustShell(s, "kill -KILL $(pidof rawblock-csi)")
	s.until("the plugin is started again", func(ctx context.Context) (bool, error) {
		now, err := n.plugin(ctx, s)
		return err == nil && isReady(now) && restarts(now) > restarts(before), err
	})
}

func restarts(pod *corev1.Pod) int32 {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name == "plugin" {
			return status.RestartCount
		}
	}
	return 0
}

// rollPlugin has all pods of the plugin replaced, as an upgrade does.
func (s *scene) rollPlugin() {
	s.Helper()
	sets := s.kube.AppsV1().DaemonSets(pluginSpace)
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"e2e":%q}}}}}`, time.Now().String())
	set, err := sets.Patch(s.Context(), pluginName, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	must(s, err)
	s.untilRolled(set.Generation)
}

// editPlugin changes the pods of the plugin, and waits until all are replaced.
func (s *scene) editPlugin(ctx context.Context, edit func(*corev1.PodSpec)) {
	s.Helper()
	sets := s.kube.AppsV1().DaemonSets(pluginSpace)
	must(s, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		set, err := sets.Get(ctx, pluginName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		edit(&set.Spec.Template.Spec)
		set, err = sets.Update(ctx, set, metav1.UpdateOptions{})
		if err == nil {
			s.untilRolled(set.Generation)
		}
		return err
	}))
}

// untilRolled waits until all pods are those of a generation of the DaemonSet.
func (s *scene) untilRolled(generation int64) {
	s.Helper()
	sets := s.kube.AppsV1().DaemonSets(pluginSpace)
	s.until("all pods of the plugin are replaced", func(ctx context.Context) (bool, error) {
		set, err := sets.Get(ctx, pluginName, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		wanted := set.Status.DesiredNumberScheduled
		return set.Status.ObservedGeneration >= generation && set.Status.UpdatedNumberScheduled == wanted &&
			set.Status.NumberAvailable == wanted, nil
	})
}

// TestWritingGoesOn has parts of a node end, and start again, under pods with
// volumes. Not one write fails, pods can be deleted, and others start.
func TestWritingGoesOn(t *testing.T) {
	restart := func(program, signal string) func(*scene, node) {
		return func(s *scene, n node) {
			n.end(s, program, signal)
			n.start(s)
		}
	}
	for _, test := range []struct {
		name string
		does func(*scene, node)
	}{
		{"kubelet restarted", restart("kubelet", "TERM")},
		{"kubelet killed", restart("kubelet", "KILL")},
		{"containerd restarted", restart("containerd", "TERM")},
		{"containerd killed", restart("containerd", "KILL")},
		{"plugin killed", func(s *scene, n node) { n.killPlugin(s) }},
		{"plugin upgraded", func(s *scene, _ node) { s.rollPlugin() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t)
			n := s.nodes()[0]
			s.claim("written", "64Mi")
			writer := s.run(on(withClaim(podSpec("writer", "sh", "-c", writing), "written"), n.name))
			s.claim("data", "64Mi")
			quiet := s.run(on(withClaim(podSpec("quiet", idle...), "data"), n.name))
			sum := quiet.fill(devicePath)
			writer.wantWriting()

			test.does(s, n)
			writer.wantWriting()
			s.claim("new", "64Mi")
			s.run(on(withClaim(podSpec("new", idle...), "new"), n.name)).fill(devicePath)
			quiet.wantSum(devicePath, sum)
			quiet.delete()
			s.run(withClaim(podSpec("next", idle...), "data")).wantSum(devicePath, sum)
			writer.wantWriting()
			if got := writer.now().Status.ContainerStatuses[0].RestartCount; got != 0 {
				t.Errorf("the writing container was started again %d times", got)
			}
			writer.delete()
		})
	}
}

// Where the plugin's container has all of kubelet's directory, as others' manifests may
// still have it, it works too; and what was published so is found, and taken away, by one that has
// only the parts that are needed.
func TestUpgradeFromWholeKubeletDirectory(t *testing.T) {
	s := newScene(t)
	n := s.nodes()[0]
	var before corev1.PodSpec
	s.editPlugin(s.Context(), func(pod *corev1.PodSpec) {
		pod.DeepCopyInto(&before)
		mountWholeKubeletDirectory(pod)
	})
	// Whatever becomes of the test: the others are about what is deployed.
	ctx := context.WithoutCancel(s.Context())
	putBack := sync.OnceFunc(func() { s.editPlugin(ctx, func(pod *corev1.PodSpec) { before.DeepCopyInto(pod) }) })
	s.afterwards = append(s.afterwards, putBack)
	if seen := n.mustShell(s, "ls /proc/$(pidof rawblock-csi)/root/var/lib/kubelet"); !slices.Contains(strings.Fields(seen), "pods") {
		t.Errorf("the plugin does not see all of kubelet's directory, but %q", seen)
	}
	s.claim("data", "64Mi")
	pod := s.run(on(withClaim(podSpec("pod", idle...), "data"), n.name))
	sum := pod.fill(devicePath)
	s.claim("read", "64Mi")
	spec := on(withClaim(podSpec("reader", idle...), "read"), n.name)
	spec.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	reader := s.run(spec)

	putBack()
	if seen := n.mustShell(s, "ls /proc/$(pidof rawblock-csi)/root/var/lib/kubelet"); slices.Contains(strings.Fields(seen), "pods") {
		t.Errorf("the plugin still sees %q", seen)
	}
	pod.wantSum(devicePath, sum)
	s.grow("data", "128Mi")
	s.until("the pod sees a device of 128Mi", func(context.Context) (bool, error) {
		size, err := pod.shell("blockdev --getsize64 %s", devicePath)
		return size == "134217728", err
	})
	reader.delete()
	pod.delete()
	s.run(withClaim(podSpec("next", idle...), "data"))
}

// mountWholeKubeletDirectory gives the plugin all of kubelet's directory instead of the
// parts that it needs.
func mountWholeKubeletDirectory(pod *corev1.PodSpec) {
	const dir = "/var/lib/kubelet"
	directory, both := corev1.HostPathDirectory, corev1.MountPropagationBidirectional
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: "kubelet-dir", VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: dir, Type: &directory},
	}})
	for i := range pod.Containers {
		container := &pod.Containers[i]
		if container.Name != "plugin" {
			continue
		}
		container.VolumeMounts = slices.DeleteFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return strings.HasPrefix(m.MountPath, dir) })
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: "kubelet-dir", MountPath: dir, MountPropagation: &both})
	}
}

// kubelet finds out from its directories what there is to take away.
func TestPodDeletedWhileKubeletIsDown(t *testing.T) {
	s := newScene(t)
	n := s.nodes()[0]
	s.claim("data", "64Mi")
	pod := s.run(on(withClaim(podSpec("pod", idle...), "data"), n.name))
	sum := pod.fill(devicePath)
	n.end(s, "kubelet", "KILL")
	now := int64(0)
	pod.startDelete(metav1.DeleteOptions{GracePeriodSeconds: &now})
	n.start(s)
	pod.untilGone()
	s.run(withClaim(podSpec("next", idle...), "data")).wantSum(devicePath, sum)
}

// After a boot, each pod gets its own disk again, although the devices' numbers have
// changed.
func TestNodeRebooted(t *testing.T) {
	s := newScene(t)
	n := s.nodes()[0]
	spacer := s.newDisk(n) // It has the first free number.
	var pods []*pod
	var sums, numbers, containers []string
	for _, name := range []string{"a", "b", "c"} {
		s.claim(name, "64Mi")
		pod := s.run(on(withClaim(podSpec(name, idle...), name), n.name))
		pods, sums, numbers = append(pods, pod), append(sums, pod.fill(devicePath)), append(numbers, pod.number())
		containers = append(containers, pod.container())
	}
	spacer.pull()
	n.reboot(s)

	changed := false
	for i, pod := range pods {
		pod.untilReplaced(containers[i])
		pod.wantSum(devicePath, sums[i])
		changed = changed || pod.number() != numbers[i]
	}
	if !changed {
		t.Error("all devices have the number that they had before")
	}
	for _, pod := range pods {
		pod.delete()
	}
}

// number is the number of the pod's device.
func (p *pod) number() string {
	p.Helper()
	return p.mustShell("stat -c %%t:%%T %s", devicePath)
}
