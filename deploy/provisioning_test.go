package deploy_test

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"
)

// settings are what the manifests depend on of the plugin's configuration.
type settings struct {
	Pools []struct {
		Name string
		File *struct{ Directory string }
		Disk *struct{}
	}
	Devices             struct{ Allow []string }
	ControllerExpansion bool
	Hotplug             struct{ AttachmentPods bool }
}

func settingsOf(t *testing.T, objects []any) settings {
	t.Helper()
	var parsed settings
	if err := yaml.Unmarshal([]byte(the[corev1.ConfigMap](t, objects).Data["config.yaml"]), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

// sidecar returns the flags of a container of the plugin's pod; it is not ok where
// there is none of that name.
func sidecar(t *testing.T, pod corev1.PodSpec, name string) (container corev1.Container, flags map[string]string, ok bool) {
	t.Helper()
	for _, container := range pod.Containers {
		if container.Name == name {
			return container, flagsOf(t, container), true
		}
	}
	return corev1.Container{}, nil, false
}

// The overlays are what they say.
func TestWhatEachDeploymentHas(t *testing.T) {
	everything := []string{"plugin", "csi-snapshotter", "csi-provisioner", "csi-resizer"}
	for dir, want := range map[string][]string{
		base:      {"plugin"},
		sidecars:  {"plugin", "node-driver-registrar", "liveness-probe"},
		standard:  {"plugin", "csi-provisioner", "csi-resizer"},
		snapshots: {"plugin", "csi-snapshotter", "csi-provisioner", "csi-resizer"},
		hotplug:   {"plugin", "csi-provisioner", "csi-resizer"},
		full:      everything, k3s: everything, microk8s: everything, k0s: everything, talos: everything, openshift: everything,
	} {
		objects := load(t, dir)
		containers := the[appsv1.DaemonSet](t, objects).Spec.Template.Spec.Containers
		for _, deployment := range all[appsv1.Deployment](objects) {
			containers = append(containers, deployment.Spec.Template.Spec.Containers...)
		}
		var got []string
		for _, container := range containers {
			got = append(got, container.Name)
		}
		// Patches of users count on the plugin being the first.
		if got[0] != want[0] || len(got) != len(want) || slices.ContainsFunc(want, func(name string) bool { return !slices.Contains(got, name) }) {
			t.Errorf("%s has the containers %q, expected %q", dir, got, want)
		}
	}
}

// A sidecar that serves one node must be told which, and must not wait to be
// elected among those of other nodes.
func TestSidecarsOfANode(t *testing.T) {
	eachDeployment(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
		for _, name := range []string{"csi-provisioner", "csi-snapshotter"} {
			container, flags, ok := sidecar(t, pod, name)
			if !ok {
				continue
			}
			if flags["node-deployment"] != "true" || fieldOf(container, "NODE_NAME") != "spec.nodeName" {
				t.Errorf("%s does not serve the volumes of its node alone", name)
			}
			if _, elects := flags["leader-election"]; elects {
				t.Errorf("%s waits to be elected", name)
			}
		}
	})
}

// The scheduler must be told of the room on each node, and what it is told must go
// with the DaemonSet.
func TestProvisioner(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		container, flags, ok := sidecar(t, pod, "csi-provisioner")
		if !ok {
			return
		}
		for flag, want := range map[string]string{
			"enable-capacity": "true", "capacity-ownerref-level": "1", "strict-topology": "true", "immediate-topology": "false",
		} {
			if flags[flag] != want {
				t.Errorf("--%s is %q, expected %q", flag, flags[flag], want)
			}
		}
		for variable, want := range map[string]string{"NAMESPACE": "metadata.namespace", "POD_NAME": "metadata.name"} {
			if got := fieldOf(container, variable); got != want {
				t.Errorf("%s is of %q, expected %s", variable, got, want)
			}
		}
		if tracked := the[storagev1.CSIDriver](t, objects).Spec.StorageCapacity; tracked == nil || !*tracked {
			t.Error("the scheduler does not look at the room on each node")
		}
		// Without a pool the plugin has no Controller service, and the sidecar ends.
		if len(settingsOf(t, objects).Pools) == 0 {
			t.Error("the configuration has no pool")
		}
	})
}

// csi-snapshotter ends where the plugin makes no snapshots; only file pools do.
func TestSnapshotterHasAPool(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		_, _, ok := sidecar(t, pod, "csi-snapshotter")
		makes := false
		for _, pool := range settingsOf(t, objects).Pools {
			makes = makes || pool.File != nil
		}
		if ok && !makes {
			t.Error("no pool of the configuration makes snapshots")
		}
	})
}

// One csi-resizer for the cluster cannot call the plugin of the right node.
func TestResizerLeavesTheWorkToTheNode(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, _ corev1.PodSpec) {
		for _, deployment := range all[appsv1.Deployment](objects) {
			if *deployment.Spec.Replicas != 1 || deployment.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
				t.Errorf("%s may run twice, and elects no leader", deployment.Name)
			}
			if settingsOf(t, objects).ControllerExpansion {
				t.Errorf("%s would have volumes grown by the plugin of the node that it is on", deployment.Name)
			}
			terms := deployment.Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
			if key := terms[0].MatchExpressions[0].Key; key != topologyKey {
				t.Errorf("%s runs where there is a label %s, expected %s: there may be no plugin", deployment.Name, key, topologyKey)
			}
		}
	})
}
