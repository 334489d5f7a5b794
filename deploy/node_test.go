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

const (
	driverName = "csi.rawblock.dev"
	pluginName = "plugin"
)

// eachDeployment runs a test for the base and for each overlay.
func eachDeployment(t *testing.T, test func(t *testing.T, objects []any, pod corev1.PodSpec)) {
	t.Helper()
	for _, dir := range []string{base, sidecars} {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			objects := load(t, dir)
			test(t, objects, the[appsv1.DaemonSet](t, objects).Spec.Template.Spec)
		})
	}
}

// eachContainer runs a test for each container of each deployment.
func eachContainer(t *testing.T, test func(t *testing.T, pod corev1.PodSpec, container corev1.Container)) {
	t.Helper()
	eachDeployment(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
		for _, container := range pod.Containers {
			t.Run(container.Name, func(t *testing.T) { test(t, pod, container) })
		}
	})
}

// plugin returns the container of the plugin, and its flags.
func plugin(t *testing.T, pod corev1.PodSpec) (corev1.Container, map[string]string) {
	t.Helper()
	for _, container := range pod.Containers {
		if container.Name == pluginName {
			return container, flagsOf(t, container)
		}
	}
	t.Fatalf("there is no container %s", pluginName)
	return corev1.Container{}, nil
}

func flagsOf(t *testing.T, container corev1.Container) map[string]string {
	t.Helper()
	flags := map[string]string{}
	for _, arg := range container.Args {
		name, value, ok := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !ok || !strings.HasPrefix(arg, "--") {
			t.Errorf("container %s: the argument %q is not of the form --flag=value", container.Name, arg)
		}
		if _, ok := flags[name]; ok {
			t.Errorf("container %s: --%s is given twice", container.Name, name)
		}
		flags[name] = value
	}
	return flags
}

func TestPodSharesNoNamespaceAndHoldsNoCredentials(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		if pod.HostNetwork || pod.HostPID || pod.HostIPC {
			t.Error("a namespace of the host is shared")
		}
		account := the[corev1.ServiceAccount](t, objects)
		if pod.ServiceAccountName != account.Name {
			t.Errorf("serviceAccountName is %q, expected %q", pod.ServiceAccountName, account.Name)
		}
		for what, automount := range map[string]*bool{"pod": pod.AutomountServiceAccountToken, "account": account.AutomountServiceAccountToken} {
			if automount == nil || *automount {
				t.Errorf("the %s does not say automountServiceAccountToken: false", what)
			}
		}
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
		for _, namespaced := range []string{daemonSet.Namespace, the[corev1.ServiceAccount](t, objects).Namespace, the[corev1.ConfigMap](t, objects).Namespace} {
			if namespace := the[corev1.Namespace](t, objects); namespaced != namespace.Name {
				t.Errorf("an object is in namespace %q, expected %q", namespaced, namespace.Name)
			}
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

// Exactly one registers the driver, by the socket that kubelet can reach.
func TestOneRegistrar(t *testing.T) {
	eachDeployment(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
		_, pluginFlags := plugin(t, pod)
		registrars := 0
		if pluginFlags["registration-dir"] != "" {
			registrars++
		}
		for _, container := range pod.Containers {
			if container.Name == pluginName {
				continue
			}
			flags := flagsOf(t, container)
			socket := strings.TrimPrefix(pluginFlags["endpoint"], "unix://")
			if host, _ := hostPath(pod, container, flags["csi-address"]); host != socket {
				t.Errorf("container %s: --csi-address is %q on the host, expected %s", container.Name, host, socket)
			}
			if told, ok := flags["kubelet-registration-path"]; ok {
				registrars++
				if told != socket {
					t.Errorf("kubelet is told %s, expected %s", told, socket)
				}
				want := filepath.Join(pluginFlags["kubelet-dir"], "plugins_registry")
				if host, _ := hostPath(pod, container, flags["plugin-registration-path"]); host != want {
					t.Errorf("--plugin-registration-path is %q on the host, expected %s", host, want)
				}
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
