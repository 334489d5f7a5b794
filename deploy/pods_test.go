package deploy_test

import (
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

const (
	driverName = "csi.rawblock.dev"
	pluginName = "plugin"
)

// deployments are what can be applied: the base and the overlays.
var deployments = []string{base, sidecars, standard, snapshots, hotplug, full, k3s, microk8s, k0s, talos, openshift}

// eachDeployment runs a test for the base and for each overlay, with the pod of
// the plugin.
func eachDeployment(t *testing.T, test func(t *testing.T, objects []any, pod corev1.PodSpec)) {
	t.Helper()
	for _, dir := range deployments {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			objects := load(t, dir)
			test(t, objects, the[appsv1.DaemonSet](t, objects).Spec.Template.Spec)
		})
	}
}

// eachPod runs a test for each kind of pod of each deployment.
func eachPod(t *testing.T, test func(t *testing.T, objects []any, pod corev1.PodSpec)) {
	t.Helper()
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		t.Run("node", func(t *testing.T) { test(t, objects, pod) })
		for _, deployment := range all[appsv1.Deployment](objects) {
			t.Run(deployment.Name, func(t *testing.T) { test(t, objects, deployment.Spec.Template.Spec) })
		}
	})
}

// eachContainer runs a test for each container of each pod.
func eachContainer(t *testing.T, test func(t *testing.T, pod corev1.PodSpec, container corev1.Container)) {
	t.Helper()
	eachPod(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
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

// fieldOf returns the field of the pod that an environment variable holds.
func fieldOf(container corev1.Container, variable string) string {
	for _, env := range container.Env {
		if env.Name == variable && env.ValueFrom != nil && env.ValueFrom.FieldRef != nil {
			return env.ValueFrom.FieldRef.FieldPath
		}
	}
	return ""
}

// account returns the ServiceAccount of a name.
func account(t *testing.T, objects []any, name string) *corev1.ServiceAccount {
	t.Helper()
	for _, account := range all[corev1.ServiceAccount](objects) {
		if account.Name == name {
			return account
		}
	}
	t.Fatalf("there is no ServiceAccount %q", name)
	return nil
}
