package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"
)

const encrypted = "kubernetes/examples/encrypted"

// withEncryption returns an overlay with the component on top.
func withEncryption(t *testing.T, overlay string) *appsv1.DaemonSet {
	t.Helper()
	dir := t.TempDir()
	text := "resources: [" + from(t, dir, overlay) + "]\ncomponents: [" + from(t, dir, components+"/encryption") + "]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return the[appsv1.DaemonSet](t, load(t, dir))
}

// The component shows the plugin the processes of the host, lets it have the keys, and
// changes nothing else, on top of any overlay.
func TestEncryptionComponent(t *testing.T) {
	for _, overlay := range []string{base, standard, hotplug} {
		without := the[appsv1.DaemonSet](t, load(t, overlay)).Spec.Template.Spec
		with := withEncryption(t, overlay).Spec.Template.Spec
		if !with.HostPID {
			t.Errorf("%s: the plugin does not see the processes of the host", overlay)
		}
		isKeys := func(v corev1.Volume) bool { return v.Name == "keys" }
		at := slices.IndexFunc(with.Volumes, isKeys)
		if at < 0 {
			t.Fatalf("%s: there is no volume of keys", overlay)
		}
		if keys := with.Volumes[at].Secret; keys == nil || *keys.DefaultMode != 0o400 || !*keys.Optional {
			t.Errorf("%s: the keys are %+v", overlay, keys)
		}
		for i := range with.Containers {
			if has := slices.ContainsFunc(with.Containers[i].VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "keys" && m.ReadOnly }); has != (with.Containers[i].Name == "plugin") {
				t.Errorf("%s: container %s has the keys: %t", overlay, with.Containers[i].Name, has)
			}
			if with.Containers[i].Name != "plugin" {
				continue
			}
			if limit := with.Containers[i].Resources.Limits.Memory(); limit.Value() < 256<<20 {
				t.Errorf("%s: %s is not enough to derive a key", overlay, limit)
			}
			with.Containers[i].Resources = corev1.ResourceRequirements{}
			with.Containers[i].VolumeMounts = slices.DeleteFunc(with.Containers[i].VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "keys" })
		}
		with.Volumes, with.HostPID = slices.DeleteFunc(with.Volumes, isKeys), without.HostPID
		plugin := slices.IndexFunc(without.Containers, func(c corev1.Container) bool { return c.Name == "plugin" })
		without = *without.DeepCopy()
		without.Containers[plugin].Resources = corev1.ResourceRequirements{}
		byName := func(a, b corev1.Container) int { return strings.Compare(a.Name, b.Name) }
		slices.SortFunc(with.Containers, byName)
		slices.SortFunc(without.Containers, byName)
		if diff := cmp.Diff(without, with); diff != "" {
			t.Errorf("%s: the component changes more:\n%s", overlay, diff)
		}
	}
}

// The chart has the same.
func TestEncryptionInChart(t *testing.T) {
	var plugin appsv1.DaemonSet
	config := ""
	for _, document := range documents(t, "encryption: {enabled: true}") {
		switch {
		case strings.Contains(document, "kind: DaemonSet"):
			decode(t, []byte(document), &plugin)
		case strings.Contains(document, "kind: ConfigMap"):
			var object corev1.ConfigMap
			decode(t, []byte(document), &object)
			config = object.Data["config.yaml"]
		}
	}
	want := withEncryption(t, standard).Spec.Template.Spec
	got := plugin.Spec.Template.Spec
	if !got.HostPID || !slices.ContainsFunc(got.Volumes, func(v corev1.Volume) bool {
		return v.Name == "keys" && cmp.Equal(v, want.Volumes[slices.IndexFunc(want.Volumes, func(v corev1.Volume) bool { return v.Name == "keys" })])
	}) {
		t.Errorf("hostPID %t, volumes %+v", got.HostPID, got.Volumes)
	}
	for _, container := range got.Containers {
		if container.Name != "plugin" {
			continue
		}
		if container.Resources.Limits.Memory().Value() != 256<<20 {
			t.Errorf("its memory is %v", container.Resources)
		}
		if !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == "keys" && m.MountPath == "/etc/rawblock-keys" && m.ReadOnly
		}) {
			t.Error("it has no keys")
		}
	}
	var settings struct {
		Encryption struct{ KeyDirectory string }
	}
	if err := yaml.Unmarshal([]byte(config), &settings); err != nil || settings.Encryption.KeyDirectory != "/etc/rawblock-keys" {
		t.Errorf("configuration %v:\n%s", err, config)
	}
	if _, err := template(t, "encryption: {enabled: true, key: x}"); err == nil {
		t.Error("an unknown value is taken")
	}
}

// Each class has its key from exactly one place, and a secret is where it is looked for.
func TestEncryptedClasses(t *testing.T) {
	objects := load(t, encrypted)
	secret := the[corev1.Secret](t, objects)
	if len(secret.StringData["encryptionKey"]) < 16 {
		t.Error("the key in the example is too short")
	}
	known := parameters(t)
	classes := map[string]bool{}
	for _, class := range all[storagev1.StorageClass](objects) {
		classes[class.Name] = true
		if class.Parameters["encryption"] != "luks2" {
			t.Errorf("%s is not encrypted", class.Name)
		}
		_, byNode := class.Parameters["encryptionKey"]
		name := class.Parameters["csi.storage.k8s.io/node-stage-secret-name"]
		if byNode == (name != "") {
			t.Errorf("%s has its key from both places, or from none: %v", class.Name, class.Parameters)
		}
		if !byNode && (name != secret.Name || class.Parameters["csi.storage.k8s.io/node-stage-secret-namespace"] != secret.Namespace) {
			t.Errorf("%s has the secret %v", class.Name, class.Parameters)
		}
	}
	if !slices.Equal(known["all encryption"], []string{"luks2"}) || len(known["all encryptionKey"]) == 0 {
		t.Errorf("the reference has %v", known)
	}
	claim := the[corev1.PersistentVolumeClaim](t, objects)
	if class := claim.Spec.StorageClassName; class == nil || !classes[*class] || *claim.Spec.VolumeMode != corev1.PersistentVolumeBlock {
		t.Errorf("the claim is %+v", claim.Spec)
	}
	if pod := the[corev1.Pod](t, objects); pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != claim.Name {
		t.Errorf("the pod has the claim %s", pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
	}
}
