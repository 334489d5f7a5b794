package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

const (
	busyboxImage  = "docker.io/library/busybox:1.37"
	pauseImage    = "registry.k8s.io/pause:3.10.2"
	containerName = "app"
	devicePath    = "/dev/xvda"
)

// pod is a pod with at most one volume, which it has at devicePath.
type pod struct {
	*scene
	name string
}

// idle is the command of a pod that does what it is told by run.
var idle = []string{"tail", "-f", "/dev/null"}

// podSpec is a pod of a busybox that has no powers.
func podSpec(name string, command ...string) *corev1.Pod {
	no, grace := false, int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			Containers: []corev1.Container{{
				Name:            containerName,
				Image:           busyboxImage,
				ImagePullPolicy: corev1.PullNever,
				Command:         command,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no,
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
					SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				},
			}},
		},
	}
}

// withVolume gives the pod a volume.
func withVolume(spec *corev1.Pod, source corev1.VolumeSource) *corev1.Pod {
	spec.Spec.Volumes = []corev1.Volume{{Name: "disk", VolumeSource: source}}
	spec.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "disk", DevicePath: devicePath}}
	return spec
}

func withClaim(spec *corev1.Pod, claim string) *corev1.Pod {
	return withVolume(spec, corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}})
}

// on has the scheduler put the pod on a node.
func on(spec *corev1.Pod, node string) *corev1.Pod {
	spec.Spec.NodeSelector = map[string]string{hostnameKey: node}
	return spec
}

// start makes the pod, and does not wait.
func (s *scene) start(spec *corev1.Pod) *pod {
	s.Helper()
	_, err := s.kube.CoreV1().Pods(s.namespace).Create(s.Context(), spec, metav1.CreateOptions{})
	must(s, err)
	return &pod{s, spec.Name}
}

// run makes the pod, and waits until it runs.
func (s *scene) run(spec *corev1.Pod) *pod {
	s.Helper()
	p := s.start(spec)
	p.untilReady()
	return p
}

func (p *pod) get(ctx context.Context) (*corev1.Pod, error) {
	return p.kube.CoreV1().Pods(p.namespace).Get(ctx, p.name, metav1.GetOptions{})
}

// now is what the API server has of the pod.
func (p *pod) now() *corev1.Pod {
	p.Helper()
	current, err := p.get(p.Context())
	must(p, err)
	return current
}

func (p *pod) node() string { return p.now().Spec.NodeName }

// untilIs waits until something is so of the pod.
func (p *pod) untilIs(what string, is func(*corev1.Pod) bool) {
	p.Helper()
	p.until(fmt.Sprintf("pod %s %s", p.name, what), func(ctx context.Context) (bool, error) {
		current, err := p.get(ctx)
		if err != nil {
			return false, err
		}
		if !is(current) {
			return false, errors.New(describe(current))
		}
		return true, nil
	})
}

func (p *pod) untilReady() {
	p.Helper()
	p.untilIs("is ready", isReady)
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// container is the ID of the pod's container.
func (p *pod) container() string {
	p.Helper()
	return p.now().Status.ContainerStatuses[0].ContainerID
}

// untilReplaced waits until the pod is ready with another container.
func (p *pod) untilReplaced(container string) {
	p.Helper()
	p.untilIs("runs again", func(now *corev1.Pod) bool {
		return isReady(now) && now.Status.ContainerStatuses[0].ContainerID != container
	})
}

// unschedulable is the scheduler's reason why the pod is nowhere, or empty.
func unschedulable(pod *corev1.Pod) string {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return condition.Message
		}
	}
	return ""
}

// describe is the state of a pod in one line.
func describe(pod *corev1.Pod) string {
	words := []string{unschedulable(pod)}
	if pod.DeletionTimestamp != nil {
		words = append(words, "being deleted")
	}
	for _, container := range pod.Status.ContainerStatuses {
		state := container.State
		switch {
		case state.Waiting != nil:
			words = append(words, container.Name, state.Waiting.Reason, state.Waiting.Message)
		case state.Running != nil:
			words = append(words, container.Name, "runs")
		case state.Terminated != nil:
			words = append(words, container.Name, state.Terminated.Reason, state.Terminated.Message)
		}
		words = append(words, fmt.Sprintf("(restarts: %d)", container.RestartCount))
	}
	return strings.Join(words, " ")
}

// delete deletes the pod as a user does, and waits until it is gone.
func (p *pod) delete() {
	p.Helper()
	p.startDelete(metav1.DeleteOptions{})
	p.untilGone()
}

func (p *pod) startDelete(options metav1.DeleteOptions) {
	p.Helper()
	must(p, p.kube.CoreV1().Pods(p.namespace).Delete(p.Context(), p.name, options))
}

func (p *pod) untilGone() {
	p.Helper()
	p.until(fmt.Sprintf("pod %s is gone", p.name), func(ctx context.Context) (bool, error) {
		current, err := p.get(ctx)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		return false, errors.New(describe(current))
	})
}

// shell runs a line of a shell in the pod, and returns what it prints.
func (p *pod) shell(format string, args ...any) (string, error) {
	return p.execute(p.namespace, p.name, containerName, "sh", "-c", fmt.Sprintf(format, args...))
}

// mustShell ends the test where the line fails.
func (p *pod) mustShell(format string, args ...any) string {
	p.Helper()
	printed, err := p.shell(format, args...)
	must(p, err)
	return printed
}

// execute runs a command in a container, as kubectl exec does. What it says on its
// standard error is part of the error.
func (s *scene) execute(namespace, pod, container string, command ...string) (string, error) {
	request := s.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec")
	request.VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(s.config, "GET", request.URL().String())
	if err != nil {
		return "", err
	}
	var printed, messages bytes.Buffer
	err = executor.StreamWithContext(s.Context(), remotecommand.StreamOptions{Stdout: &printed, Stderr: &messages})
	if err != nil {
		err = fmt.Errorf("%s in pod %s: %w\n%s%s", strings.Join(command, " "), pod, err, printed.String(), messages.String())
	}
	return strings.TrimSpace(printed.String()), err
}

// log is what the pod has printed, as kubelet tells it. One that has just started
// does not know its pods yet.
func (p *pod) log(ctx context.Context) (string, error) {
	text, err := p.kube.CoreV1().Pods(p.namespace).GetLogs(p.name, &corev1.PodLogOptions{}).DoRaw(ctx)
	return string(text), err
}

// fill writes noise to the beginning of the device, and returns its sum.
func (p *pod) fill(device string) string {
	p.Helper()
	p.mustShell("dd if=/dev/urandom of=%s bs=1M count=4 conv=fsync 2>&1", device)
	return p.sum(device)
}

// sum is that of what fill wrote.
func (p *pod) sum(device string) string {
	p.Helper()
	return p.mustShell("dd if=%s bs=1M count=4 2>/dev/null | sha256sum", device)
}

// wantSum fails the test where the beginning of the device is not what fill wrote.
func (p *pod) wantSum(device, want string) {
	p.Helper()
	if got := p.sum(device); got != want {
		p.Errorf("pod %s reads %s at %s, want %s", p.name, got, device, want)
	}
}

// size is the size of the device in bytes, as the pod sees it.
func (p *pod) size(device string) string {
	p.Helper()
	return p.mustShell("blockdev --getsize64 %s", device)
}
