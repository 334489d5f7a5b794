package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// systemBusDir is where the system bus has its socket on a host, if it has a system
// bus.
const systemBusDir = "/run/dbus"

// runtimeSocket is where the plugin first looks for the container runtime.
const runtimeSocket = "/run/containerd/containerd.sock"

// hostToContainer reports whether what the host mounts and unmounts comes and goes in
// the container.
func hostToContainer(mount corev1.VolumeMount) bool {
	return mount.MountPropagation != nil && *mount.MountPropagation == corev1.MountPropagationHostToContainer
}

// What hot attach needs of the host is there if and only if pods may ask for it, and
// nothing is writable, or follows the host's mounts, without need.
func TestWhatHotAttachSees(t *testing.T) {
	without := []string{base, sidecars, standard, snapshots}
	for _, dir := range deployments {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			objects := load(t, dir)
			attaches := settingsOf(t, objects).Hotplug.AttachmentPods
			if attaches == slices.Contains(without, dir) {
				t.Errorf("pods may ask for attachments: %t", attaches)
			}
			pod := the[appsv1.DaemonSet](t, objects).Spec.Template.Spec
			container, _ := plugin(t, pod)
			for _, want := range []struct {
				path, host       string
				readOnly, follow bool
			}{
				// Not at /sys/fs/cgroup, where the runtime mounts the container's own.
				{"/host/cgroup", "/sys/fs/cgroup", false, true},
				{socketOf(dir), socketOf(dir), true, true},
				{systemBusDir + "/system_bus_socket", systemBusDir + "/system_bus_socket", true, false},
			} {
				if !attaches {
					want.host, want.readOnly, want.follow = "", false, false
				}
				host, mount := hostPath(pod, container, want.path)
				if host != want.host || mount.ReadOnly != want.readOnly || hostToContainer(mount) != want.follow {
					t.Errorf("%s is %q on the host, read-only: %t, HostToContainer: %t; expected %+v", want.path, host, mount.ReadOnly, hostToContainer(mount), want)
				}
			}
		})
	}
}

// The overlay has a configuration of its own, since a file in a ConfigMap can only be
// replaced whole. It must not stay behind that of the base.
func TestHotplugConfig(t *testing.T) {
	text := func(dir string) string { return the[corev1.ConfigMap](t, load(t, dir)).Data["config.yaml"] }
	const off, on = "attachmentPods: false", "attachmentPods: true"
	want := text(standard)
	if strings.Count(want, off) != 1 {
		t.Fatalf("the base does not say %s", off)
	}
	if diff := cmp.Diff(strings.Replace(want, off, on, 1), text(hotplug)); diff != "" {
		t.Errorf("other than the base's (-want +got):\n%s", diff)
	}
}

// Hot attach needs nobody who may use the Kubernetes API.
func TestHotplugAddsNoRights(t *testing.T) {
	without, with := load(t, standard), load(t, hotplug)
	if diff := cmp.Diff(rules(without), rules(with)); diff != "" {
		t.Errorf("rules (-without +with):\n%s", diff)
	}
	if a, b := len(bindings(without)), len(bindings(with)); a != b {
		t.Errorf("%d bindings, %d without", b, a)
	}
	if a, b := len(without), len(with); a != b {
		t.Errorf("%d objects, %d without", b, a)
	}
}

// knownSockets are the paths of the sockets that the plugin looks for, in its source.
func knownSockets(t *testing.T) []string {
	t.Helper()
	source, err := os.ReadFile("../pkg/cri/cri.go")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, match := range regexp.MustCompile(`(?m)^\t"([a-z0-9/.-]+\.sock)",$`).FindAllStringSubmatch(string(source), -1) {
		found = append(found, "/"+match[1])
	}
	if len(found) < 2 || found[0] != runtimeSocket {
		t.Fatalf("the plugin looks for %q, expected %s first", found, runtimeSocket)
	}
	return found
}

// annotation is the form of the annotation of an attachment pod; that the plugin
// reads the example's, pkg/hotplug tests.
var annotation = regexp.MustCompile(`^([^/@:]+)/([^/@:]+):(/[^:]+)$`)

// examplePods returns the pod that is attached to, and the one that attaches.
func examplePods(t *testing.T) (target, attachment *corev1.Pod) {
	t.Helper()
	for _, pod := range all[corev1.Pod](load(t, attached)) {
		if len(pod.Spec.Volumes) == 0 {
			target = pod
		} else {
			attachment = pod
		}
	}
	if target == nil || attachment == nil {
		t.Fatal("there is not one pod with a volume and one without")
	}
	return target, attachment
}

func TestAttachmentPodNamesItsTarget(t *testing.T) {
	target, pod := examplePods(t)
	match := annotation.FindStringSubmatch(pod.Annotations["hotplug.rawblock.dev/target"])
	if match == nil {
		t.Fatalf("the annotations are %q", pod.Annotations)
	}
	if match[1] != target.Name || pod.Namespace != target.Namespace {
		t.Errorf("the target is %s in %s, expected %s in %s", match[1], pod.Namespace, target.Name, target.Namespace)
	}
	if !slices.ContainsFunc(target.Spec.Containers, func(c corev1.Container) bool { return c.Name == match[2] }) {
		t.Errorf("%s has no container %s", target.Name, match[2])
	}
	near := pod.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if len(near) != 1 || near[0].TopologyKey != corev1.LabelHostname {
		t.Fatalf("the pod is not on the node of its target: %v", near)
	}
	if diff := cmp.Diff(target.Labels, near[0].LabelSelector.MatchLabels); diff != "" {
		t.Errorf("the pod is near another one (-target +selector):\n%s", diff)
	}
}

// An attachment pod must not be a reason to loosen a namespace, or be evicted before
// its target, and has one volume: the plugin refuses others.
func TestAttachmentPodIsHarmless(t *testing.T) {
	_, pod := examplePods(t)
	if len(pod.Spec.Volumes) != 1 || len(pod.Spec.Containers) != 1 {
		t.Fatalf("%d volumes and %d containers, expected one of each", len(pod.Spec.Volumes), len(pod.Spec.Containers))
	}
	container := pod.Spec.Containers[0]
	if pod.Spec.AutomountServiceAccountToken == nil || *pod.Spec.AutomountServiceAccountToken {
		t.Error("it holds a token")
	}
	// The restricted Pod Security Standard.
	security := container.SecurityContext
	if security.RunAsNonRoot == nil || !*security.RunAsNonRoot || security.AllowPrivilegeEscalation == nil || *security.AllowPrivilegeEscalation ||
		!slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}) || security.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("it is not restricted: %v", security)
	}
	if diff := cmp.Diff(container.Resources.Limits, container.Resources.Requests); diff != "" || len(container.Resources.Limits) != 2 {
		t.Errorf("it is not of the class Guaranteed: %v", container.Resources)
	}
	name, tag, _ := strings.Cut(container.Image, ":")
	if name != "registry.k8s.io/pause" || tag == "" {
		t.Errorf("the image is %s", container.Image)
	}
}
