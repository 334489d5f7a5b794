package deploy_test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Hot attach alone, and so the plugin alone, has a use for the host's processes.
func TestPodSharesNoNamespace(t *testing.T) {
	eachPod(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		_, _, attaches := sidecar(t, pod, pluginName)
		attaches = attaches && settingsOf(t, objects).Hotplug.AttachmentPods
		if pod.HostNetwork || pod.HostIPC || pod.HostPID != attaches {
			t.Errorf("namespaces of the host are shared: network %t, IPC %t, PID %t; hot attach: %t", pod.HostNetwork, pod.HostIPC, pod.HostPID, attaches)
		}
		account(t, objects, pod.ServiceAccountName)
	})
}

func TestPodRunsOnEveryLinuxNode(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		if len(pod.Tolerations) != 1 || pod.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
			t.Errorf("tolerations are %v, expected one that tolerates everything", pod.Tolerations)
		}
		if pod.PriorityClassName != "system-node-critical" {
			t.Errorf("priorityClassName is %q", pod.PriorityClassName)
		}
		daemonSet := the[appsv1.DaemonSet](t, objects)
		for key, value := range daemonSet.Spec.Selector.MatchLabels {
			if daemonSet.Spec.Template.Labels[key] != value {
				t.Errorf("the selector asks for %s=%s, which the pods do not have", key, value)
			}
		}
		if surge := daemonSet.Spec.UpdateStrategy.RollingUpdate.MaxSurge; surge == nil || *surge != intstr.FromInt32(0) {
			t.Errorf("maxSurge is %v: two plugins would want one socket", surge)
		}
	})
}

// Kubernetes allows Bidirectional in privileged containers only, and nothing
// else here is a reason to be privileged.
func TestPrivilegedIfAndOnlyIfBidirectional(t *testing.T) {
	eachContainer(t, func(t *testing.T, _ corev1.PodSpec, container corev1.Container) {
		bidirectional := false
		for _, mount := range container.VolumeMounts {
			if mode := mount.MountPropagation; mode != nil && *mode == corev1.MountPropagationBidirectional {
				bidirectional = true
			}
		}
		security := container.SecurityContext
		if security == nil {
			t.Fatal("there is no securityContext")
		}
		if privileged := security.Privileged != nil && *security.Privileged; privileged != bidirectional {
			t.Errorf("privileged is %t, mounted with Bidirectional propagation: %t", privileged, bidirectional)
		}
		if security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem {
			t.Error("the root filesystem can be written to")
		}
		if security.RunAsUser == nil || *security.RunAsUser != 0 {
			t.Error("the user is left to the image, and may not be root")
		}
		if bidirectional {
			return
		}
		if security.AllowPrivilegeEscalation == nil || *security.AllowPrivilegeEscalation {
			t.Error("privileges can be gained")
		}
		if c := security.Capabilities; c == nil || len(c.Drop) != 1 || c.Drop[0] != "ALL" || len(c.Add) != 0 {
			t.Errorf("capabilities are %v, expected all to be dropped", c)
		}
		if p := security.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("seccompProfile is %v", p)
		}
	})
}

func TestSidecarsCallThePlugin(t *testing.T) {
	eachPod(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		_, pluginFlags := plugin(t, the[appsv1.DaemonSet](t, objects).Spec.Template.Spec)
		socket := strings.TrimPrefix(pluginFlags["endpoint"], "unix://")
		for _, container := range pod.Containers {
			if container.Name == pluginName {
				continue
			}
			if host, _ := hostPath(pod, container, flagsOf(t, container)["csi-address"]); host != socket {
				t.Errorf("container %s: --csi-address is %q on the host, expected %s", container.Name, host, socket)
			}
		}
	})
}

// Exactly one registers the driver, by the socket that kubelet can reach.
func TestOneRegistrar(t *testing.T) {
	eachDeployment(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
		_, pluginFlags := plugin(t, pod)
		registrars := 0
		if pluginFlags["registration-dir"] != "" {
			registrars++
		}
		for _, container := range pod.Containers {
			flags := flagsOf(t, container)
			told, ok := flags["kubelet-registration-path"]
			if !ok {
				continue
			}
			registrars++
			if socket := strings.TrimPrefix(pluginFlags["endpoint"], "unix://"); told != socket {
				t.Errorf("kubelet is told %s, expected %s", told, socket)
			}
			want := filepath.Join(pluginFlags["kubelet-dir"], "plugins_registry")
			if host, _ := hostPath(pod, container, flags["plugin-registration-path"]); host != want {
				t.Errorf("--plugin-registration-path is %q on the host, expected %s", host, want)
			}
		}
		if registrars != 1 {
			t.Errorf("%d containers register the driver, expected one", registrars)
		}
	})
}

func TestNodeID(t *testing.T) {
	eachDeployment(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
		container, flags := plugin(t, pod)
		for _, env := range container.Env {
			if flags["node-id"] == "$("+env.Name+")" && env.ValueFrom.FieldRef.FieldPath == "spec.nodeName" {
				return
			}
		}
		t.Errorf("--node-id=%s is not the name of the node", flags["node-id"])
	})
}

// Each probe asks a port that a container of the pod serves.
func TestProbes(t *testing.T) {
	eachDeployment(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
		served := map[int32]bool{}
		for _, container := range pod.Containers {
			flags := flagsOf(t, container)
			for _, flag := range []string{"metrics-address", "http-endpoint"} {
				if _, port, err := net.SplitHostPort(flags[flag]); err == nil {
					served[intstr.Parse(port).IntVal] = true
				}
			}
		}
		for _, container := range pod.Containers {
			for _, port := range container.Ports {
				if !served[port.ContainerPort] {
					t.Errorf("container %s: nothing listens on the port %s", container.Name, port.Name)
				}
			}
			for what, probe := range map[string]*corev1.Probe{"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe} {
				if probe != nil && !served[portOf(container, probe.HTTPGet.Port)] {
					t.Errorf("container %s: nothing listens on the port %s of its %s probe", container.Name, probe.HTTPGet.Port.String(), what)
				}
			}
		}
		container, _ := plugin(t, pod)
		for want, probe := range map[string]*corev1.Probe{"/readyz": container.ReadinessProbe, "/healthz": container.LivenessProbe} {
			if probe == nil || probe.HTTPGet.Path != want {
				t.Errorf("no probe of the plugin asks for %s where it should", want)
			}
		}
		if container.StartupProbe == nil {
			t.Error("the plugin has no startup probe")
		}
	})
}

func portOf(container corev1.Container, port intstr.IntOrString) int32 {
	for _, p := range container.Ports {
		if port.Type == intstr.String && p.Name == port.StrVal {
			return p.ContainerPort
		}
	}
	return port.IntVal
}

func TestContainersAreBounded(t *testing.T) {
	eachContainer(t, func(t *testing.T, _ corev1.PodSpec, container corev1.Container) {
		resources := container.Resources
		if resources.Requests.Cpu().IsZero() || resources.Requests.Memory().IsZero() || resources.Limits.Memory().IsZero() {
			t.Errorf("resources are %v, expected requests for cpu and memory and a limit for memory", resources)
		}
		if !resources.Limits.Cpu().IsZero() {
			t.Error("the CPU is limited, which would make pods start later")
		}
	})
}

func TestImagesArePinned(t *testing.T) {
	eachContainer(t, func(t *testing.T, _ corev1.PodSpec, container corev1.Container) {
		if _, tag, _ := strings.Cut(container.Image, ":"); tag == "" || tag == "latest" {
			t.Errorf("the image %s has no version", container.Image)
		}
	})
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		container, _ := plugin(t, pod)
		_, tag, _ := strings.Cut(container.Image, ":")
		labels := the[appsv1.DaemonSet](t, objects).Spec.Template.Labels
		if version := labels["app.kubernetes.io/version"]; version != tag {
			t.Errorf("app.kubernetes.io/version is %q, but the image is of version %q", version, tag)
		}
	})
}

func TestCSIDriver(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, _ corev1.PodSpec) {
		driver := the[storagev1.CSIDriver](t, objects)
		if driver.Name != driverName {
			t.Errorf("the name is %q, expected %q", driver.Name, driverName)
		}
		if driver.Spec.AttachRequired == nil || *driver.Spec.AttachRequired {
			t.Error("attachRequired is not false: pods would wait for an attacher that does not exist")
		}
	})
}
