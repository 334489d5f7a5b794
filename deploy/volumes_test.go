package deploy_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// topologyKey is the label that the plugin gives to its node.
const topologyKey = "topology.rawblock.dev/node"

// attributes are the keys of volumeAttributes that the plugin reads.
var attributes = []string{"device", "wwid", "serial", "size"}

func TestPersistentVolumes(t *testing.T) {
	handles := map[string]bool{}
	for _, pv := range all[corev1.PersistentVolume](load(t, examples)) {
		t.Run(pv.Name, func(t *testing.T) {
			spec := pv.Spec
			if spec.CSI == nil || spec.CSI.Driver != driverName {
				t.Fatalf("it is not of the driver %s", driverName)
			}
			if handles[spec.CSI.VolumeHandle] {
				t.Errorf("volumeHandle %q is taken", spec.CSI.VolumeHandle)
			}
			handles[spec.CSI.VolumeHandle] = true
			if spec.VolumeMode == nil || *spec.VolumeMode != corev1.PersistentVolumeBlock {
				t.Error("volumeMode is not Block")
			}
			if spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
				t.Error("the reclaim policy is not Retain")
			}
			for key := range spec.CSI.VolumeAttributes {
				if !slices.Contains(attributes, key) {
					t.Errorf("the plugin does not read volumeAttributes.%s", key)
				}
			}
			checkAllowed(t, spec.CSI.VolumeAttributes["device"])
			checkAffinity(t, spec.NodeAffinity)
		})
	}
}

// Two volumes may name one device only where both have an access mode that several
// nodes may use at once; the plugin refuses to stage the second one otherwise.
func TestVolumesShareNoDevice(t *testing.T) {
	shared := func(pv *corev1.PersistentVolume) bool {
		return !slices.ContainsFunc(pv.Spec.AccessModes, func(mode corev1.PersistentVolumeAccessMode) bool {
			return mode != corev1.ReadWriteMany && mode != corev1.ReadOnlyMany
		})
	}
	byDevice := map[string]*corev1.PersistentVolume{}
	for _, pv := range all[corev1.PersistentVolume](load(t, examples)) {
		// The pins say which disk it is, whatever link leads to it.
		for _, key := range []string{"device", "wwid", "serial"} {
			value, ok := pv.Spec.CSI.VolumeAttributes[key]
			if !ok {
				continue
			}
			id := key + " " + value
			if other, ok := byDevice[id]; ok && (!shared(pv) || !shared(other)) {
				t.Errorf("%s and %s are both of the %s, with access modes %v and %v", other.Name, pv.Name, id, other.Spec.AccessModes, pv.Spec.AccessModes)
			}
			byDevice[id] = pv
		}
	}
}

// checkAllowed sees that the configuration that is deployed allows the device.
func checkAllowed(t *testing.T, device string) {
	t.Helper()
	allowed := settingsOf(t, load(t, base)).Devices.Allow
	for _, pattern := range allowed {
		if matched, err := filepath.Match(pattern, device); err == nil && matched {
			return
		}
	}
	t.Errorf("%q is not in devices.allow %q", device, allowed)
}

func checkAffinity(t *testing.T, affinity *corev1.VolumeNodeAffinity) {
	t.Helper()
	if affinity == nil || affinity.Required == nil || len(affinity.Required.NodeSelectorTerms) != 1 {
		t.Fatal("nodeAffinity does not name one node")
	}
	got := affinity.Required.NodeSelectorTerms[0].MatchExpressions
	want := []corev1.NodeSelectorRequirement{{Key: topologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{"node-1"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodeAffinity (-want +got):\n%s", diff)
	}
}

// A volume and its claim name each other, so that neither can be bound to
// anything else.
func TestClaimsBindToTheirVolumes(t *testing.T) {
	objects := load(t, examples)
	volumes := map[string]corev1.PersistentVolumeSpec{}
	for _, pv := range all[corev1.PersistentVolume](objects) {
		volumes[pv.Name] = pv.Spec
	}
	claims := all[corev1.PersistentVolumeClaim](objects)
	if len(claims) != len(volumes) {
		t.Errorf("there are %d claims and %d volumes", len(claims), len(volumes))
	}
	for _, claim := range claims {
		volume, ok := volumes[claim.Spec.VolumeName]
		if !ok {
			t.Errorf("claim %s: there is no volume %q", claim.Name, claim.Spec.VolumeName)
			continue
		}
		if ref := volume.ClaimRef; ref == nil || ref.Namespace != claim.Namespace || ref.Name != claim.Name {
			t.Errorf("claim %s: the volume is for %v", claim.Name, ref)
		}
		// Only an empty class says that it is no class; nil is the default class.
		if class := claim.Spec.StorageClassName; class == nil || *class != volume.StorageClassName {
			t.Errorf("claim %s: storageClassName is not that of the volume", claim.Name)
		}
		if diff := cmp.Diff(volume.AccessModes, claim.Spec.AccessModes); diff != "" {
			t.Errorf("claim %s: accessModes (-volume +claim):\n%s", claim.Name, diff)
		}
		if diff := cmp.Diff(volume.VolumeMode, claim.Spec.VolumeMode); diff != "" {
			t.Errorf("claim %s: volumeMode (-volume +claim):\n%s", claim.Name, diff)
		}
		if claim.Spec.Resources.Requests.Storage().Cmp(*volume.Capacity.Storage()) > 0 {
			t.Errorf("claim %s asks for more than the volume has", claim.Name)
		}
	}
}
