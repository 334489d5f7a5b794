package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDataOutlivesPod(t *testing.T) {
	s := newScene(t)
	s.claim("data", "64Mi")
	spec := withClaim(podSpec("first", idle...), "data")
	s.giveSecret(spec)
	first := s.run(spec)
	first.wantSecretUnseen()
	if got := first.size(devicePath); got != "67108864" {
		t.Errorf("the device has %s bytes, want 64Mi", got)
	}
	sum := first.fill(devicePath)
	node := first.node()
	first.delete()

	second := s.run(withClaim(podSpec("second", idle...), "data"))
	second.wantSum(devicePath, sum)
	if second.node() != node {
		t.Errorf("the second pod runs on %s, and the volume is on %s", second.node(), node)
	}
}

// secret is what nobody but its pod may read.
const secret = "not-for-the-plugin"

// giveSecret makes a Secret, and gives it to a pod.
func (s *scene) giveSecret(spec *corev1.Pod) {
	s.Helper()
	object := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "secret"}, StringData: map[string]string{"word": secret}}
	_, err := s.kube.CoreV1().Secrets(s.namespace).Create(s.Context(), object, metav1.CreateOptions{})
	must(s, err)
	spec.Spec.Volumes = append(spec.Spec.Volumes, corev1.Volume{Name: "secret", VolumeSource: corev1.VolumeSource{
		Secret: &corev1.SecretVolumeSource{SecretName: object.Name},
	}})
	spec.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "secret", MountPath: "/secret"}}
}

// wantSecretUnseen fails the test where the secret of the pod, which kubelet has in its
// directory, is in the plugin's container, whose directory that is too. The plugin still
// tells whether the pod is there, where it has the host's processes, and says that it cannot
// where it has not.
func (p *pod) wantSecretUnseen() {
	p.Helper()
	n, uid := node{p.node()}, p.now().UID
	file := fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/kubernetes.io~secret/secret/word", uid)
	if got := n.mustShell(p.scene, "cat %s", file); got != secret {
		p.Errorf("kubelet has %q at %s", got, file)
	}
	container := n.mustShell(p.scene, "echo /proc/$(pidof rawblock-csi)/root")
	if got, err := n.shell("ls -d " + container + "/var/lib/kubelet/pods"); err == nil {
		p.Errorf("the plugin's container has %s", got)
	}
	if found, err := n.shell("grep -rsl " + secret + " " + container + "/var/lib/kubelet"); err == nil {
		p.Errorf("the plugin's container has the secret in %s", found)
	}
	// The target it has.
	n.mustShell(p.scene, "test -b %s/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/*/%s", container, uid)
	plugin, err := n.plugin(p.Context(), p.scene)
	must(p, err)
	said, err := p.execute(pluginSpace, plugin.Name, "plugin", "/rawblockctl", "doctor", "-o", "json")
	if err != nil && said == "" {
		must(p, err)
	}
	if strings.Contains(said, `"PodsUnseen"`) == plugin.Spec.HostPID || strings.Contains(said, `"Unseen"`) || strings.Contains(said, `"OrphanPublish"`) {
		p.Errorf("the plugin has the host's processes: %t; doctor says %s", plugin.Spec.HostPID, said)
	}
}

func TestVolumeGrowsInUse(t *testing.T) {
	s := newScene(t)
	s.claim("data", "64Mi")
	pod := s.run(withClaim(podSpec("pod", idle...), "data"))
	sum := pod.fill(devicePath)
	s.grow("data", "128Mi")
	s.until("the pod sees a device of 128Mi", func(context.Context) (bool, error) {
		size, err := pod.shell("blockdev --getsize64 %s", devicePath)
		return size == "134217728", err
	})
	s.until("the claim has 128Mi", func(ctx context.Context) (bool, error) {
		claim, err := s.getClaim(ctx, "data")
		return err == nil && claim.Status.Capacity.Storage().String() == "128Mi", err
	})
	pod.wantSum(devicePath, sum)
	pod.mustShell("dd if=/dev/urandom of=%s bs=1M seek=127 count=1 conv=fsync 2>&1", devicePath)
	if now := pod.now().Status.ContainerStatuses[0]; now.RestartCount != 0 {
		t.Errorf("the container was started again: %+v", now)
	}
}

func TestReadOnlyUse(t *testing.T) {
	s := newScene(t)
	s.claim("data", "64Mi")
	writer := s.run(withClaim(podSpec("writer", idle...), "data"))
	sum := writer.fill(devicePath)
	writer.delete()

	spec := withClaim(podSpec("reader", idle...), "data")
	spec.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	reader := s.run(spec)
	reader.wantSum(devicePath, sum)
	if got := reader.mustShell("blockdev --getro %s", devicePath); got != "1" {
		t.Errorf("blockdev --getro prints %s, want 1", got)
	}
	if printed, err := reader.shell("dd if=/dev/urandom of=%s bs=512 count=1 conv=fsync 2>&1", devicePath); err == nil {
		t.Errorf("the device was written to: %s", printed)
	}
	reader.wantSum(devicePath, sum)
}

func TestReadWriteOncePod(t *testing.T) {
	s := newScene(t)
	s.makeClaim("data", s.claimSpec("64Mi", corev1.ReadWriteOncePod))
	first := s.run(withClaim(podSpec("first", idle...), "data"))
	second := s.start(withClaim(podSpec("second", idle...), "data"))
	second.untilIs("has no node because of its claim", func(pod *corev1.Pod) bool {
		return strings.Contains(unschedulable(pod), "ReadWriteOncePod")
	})
	first.delete()
	second.untilReady()
}

func TestEphemeralVolume(t *testing.T) {
	s := newScene(t)
	template := &corev1.PersistentVolumeClaimTemplate{Spec: s.claimSpec("64Mi", corev1.ReadWriteOnce)}
	pod := s.run(withVolume(podSpec("pod", idle...), corev1.VolumeSource{
		Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: template},
	}))
	pod.fill(devicePath)
	pod.delete()
	s.until("the volume is gone with its pod", func(ctx context.Context) (bool, error) {
		volumes, err := s.volumes(ctx)
		return len(volumes) == 0, err
	})
}

// kubelet takes the volume away although nobody waits for that.
func TestPodDeletedByForce(t *testing.T) {
	s := newScene(t)
	s.claim("data", "64Mi")
	first := s.run(withClaim(podSpec("first", idle...), "data"))
	sum := first.fill(devicePath)
	now := int64(0)
	first.startDelete(metav1.DeleteOptions{GracePeriodSeconds: &now})
	second := s.run(withClaim(podSpec("second", idle...), "data"))
	second.wantSum(devicePath, sum)
	first.untilGone()
}

// manyPods is how many pods start and end at once.
const manyPods = 50

func TestManyPodsAtOnce(t *testing.T) {
	s := newScene(t)
	var pods []*pod
	for i := range manyPods {
		name := fmt.Sprintf("pod-%d", i)
		s.claim(name, "16Mi")
		pods = append(pods, s.start(withClaim(podSpec(name, "sh", "-c",
			"hostname | dd of="+devicePath+" bs=512 conv=sync,fsync && exec tail -f /dev/null"), name)))
	}
	for _, pod := range pods {
		pod.untilReady()
	}
	// Only now: none may have the disk of another.
	for _, pod := range pods {
		if got := pod.mustShell("dd if=%s bs=512 count=1 2>/dev/null | tr -d '\\0'", devicePath); got != pod.name {
			t.Errorf("pod %s reads %q", pod.name, got)
		}
	}
	for _, pod := range pods {
		pod.startDelete(metav1.DeleteOptions{})
	}
	for _, pod := range pods {
		pod.untilGone()
	}
}
