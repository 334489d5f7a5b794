package deploy_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// poolKinds are the kinds of the pools that the example classes name. The first is
// the default; the second stands in a comment of base/config.yaml.
var poolKinds = map[string]string{"files": "file", "nvme": "disk"}

func TestStorageClasses(t *testing.T) {
	known := parameters(t)
	for _, class := range all[storagev1.StorageClass](load(t, provisioned)) {
		t.Run(class.Name, func(t *testing.T) {
			if class.Provisioner != driverName {
				t.Errorf("provisioner is %q", class.Provisioner)
			}
			if mode := class.VolumeBindingMode; mode == nil || *mode != storagev1.VolumeBindingWaitForFirstConsumer {
				t.Error("the volume may be made where its pod cannot go")
			}
			if grows := class.AllowVolumeExpansion; grows == nil || !*grows {
				t.Error("its claims cannot grow")
			}
			kind, ok := poolKinds[class.Parameters["pool"]]
			if !ok {
				t.Errorf("there is no pool %q", class.Parameters["pool"])
			}
			for key, value := range class.Parameters {
				values, ok := known[kind+" "+key]
				if key != "pool" && !ok {
					t.Errorf("a pool of kind %s has no parameter %s", kind, key)
				}
				if key != "pool" && !slices.Contains(values, value) {
					t.Errorf("parameter %s is %q, expected one of %q", key, value, values)
				}
			}
		})
	}
}

// parameters returns the values of each parameter of each kind of pool, as they
// stand in the reference; that it is as the code is, pkg/config tests.
func parameters(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/reference/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{}
	row := regexp.MustCompile("(?m)^\\| (all|file|disk) \\| `([a-zA-Z]+)` \\| ([^|]*) \\|")
	for _, match := range row.FindAllStringSubmatch(string(text), -1) {
		for value := range strings.SplitSeq(match[3], ", ") {
			known[match[1]+" "+match[2]] = append(known[match[1]+" "+match[2]], strings.Trim(value, "`\""))
		}
	}
	if len(known) == 0 {
		t.Fatal("the reference has no table of parameters")
	}
	return known
}

// What a claim of a class asks for must be what the plugin makes: a raw device for
// one node.
func TestProvisionedClaims(t *testing.T) {
	objects := slices.Concat(load(t, provisioned), load(t, restored), load(t, attached))
	classes := map[string]bool{}
	for _, class := range all[storagev1.StorageClass](objects) {
		classes[class.Name] = true
	}
	for _, claim := range all[corev1.PersistentVolumeClaim](objects) {
		if mode := claim.Spec.VolumeMode; mode == nil || *mode != corev1.PersistentVolumeBlock {
			t.Errorf("claim %s: volumeMode is not Block", claim.Name)
		}
		if class := claim.Spec.StorageClassName; class == nil || !classes[*class] {
			t.Errorf("claim %s: there is no class of its name", claim.Name)
		}
		for _, mode := range claim.Spec.AccessModes {
			if mode != corev1.ReadWriteOncePod && mode != corev1.ReadWriteOnce {
				t.Errorf("claim %s: several nodes cannot reach a volume, as %s asks for", claim.Name, mode)
			}
		}
	}
}

// A snapshot is of a claim of the examples, and what is made of it is at least as
// large and in the same pool.
func TestRestoredClaims(t *testing.T) {
	source := the[corev1.PersistentVolumeClaim](t, load(t, provisioned))
	objects := load(t, restored)
	class, snapshot := the[snapshotv1.VolumeSnapshotClass](t, objects), the[snapshotv1.VolumeSnapshot](t, objects)
	if class.Driver != driverName || len(class.Parameters) != 0 {
		t.Errorf("the class is of the driver %q with the parameters %v, expected %s and none", class.Driver, class.Parameters, driverName)
	}
	if name := snapshot.Spec.VolumeSnapshotClassName; name == nil || *name != class.Name {
		t.Error("the snapshot is not of the class")
	}
	if of := snapshot.Spec.Source.PersistentVolumeClaimName; of == nil || *of != source.Name || snapshot.Namespace != source.Namespace {
		t.Errorf("the snapshot is not of the claim %s", source.Name)
	}
	claim := the[corev1.PersistentVolumeClaim](t, objects)
	from := claim.Spec.DataSource
	if from == nil || from.APIGroup == nil || *from.APIGroup != snapshotv1.GroupName || from.Kind != "VolumeSnapshot" || from.Name != snapshot.Name {
		t.Errorf("the claim is made of %v, expected the snapshot", from)
	}
	if claim.Spec.Resources.Requests.Storage().Cmp(*source.Spec.Resources.Requests.Storage()) < 0 {
		t.Error("the claim is smaller than the snapshot")
	}
	if *claim.Spec.StorageClassName != *source.Spec.StorageClassName {
		t.Error("the claim may be of another pool than the snapshot")
	}
	pod, first := the[corev1.Pod](t, objects), the[corev1.Pod](t, load(t, provisioned))
	near := pod.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0]
	if near.TopologyKey != topologyKey {
		t.Errorf("the pod is near the other one by %s, expected %s", near.TopologyKey, topologyKey)
	}
	for key, value := range near.LabelSelector.MatchLabels {
		if first.Labels[key] != value {
			t.Errorf("the pod %s does not have the label %s=%s", first.Name, key, value)
		}
	}
}

// A pod uses its claim as a device, and only reads a volume that is only for reading.
func TestPodsUseTheirClaims(t *testing.T) {
	objects := slices.Concat(load(t, examples), load(t, provisioned), load(t, restored), load(t, attached))
	modes := map[string][]corev1.PersistentVolumeAccessMode{}
	for _, claim := range all[corev1.PersistentVolumeClaim](objects) {
		modes[claim.Namespace+"/"+claim.Name] = claim.Spec.AccessModes
	}
	for _, pod := range all[corev1.Pod](objects) {
		devices := map[string]bool{}
		for _, container := range pod.Spec.Containers {
			for _, device := range container.VolumeDevices {
				devices[device.Name] = true
			}
		}
		for _, volume := range pod.Spec.Volumes {
			source := volume.PersistentVolumeClaim
			mode, ok := modes[pod.Namespace+"/"+source.ClaimName]
			if !ok {
				t.Errorf("pod %s: there is no claim %s", pod.Name, source.ClaimName)
			}
			if !devices[volume.Name] {
				t.Errorf("pod %s: no container has the volume %s as a device", pod.Name, volume.Name)
			}
			if readOnly := slices.Contains(mode, corev1.ReadOnlyMany); readOnly != source.ReadOnly {
				t.Errorf("pod %s: readOnly is %t, but the access mode of the claim is %v", pod.Name, source.ReadOnly, mode)
			}
		}
	}
}
