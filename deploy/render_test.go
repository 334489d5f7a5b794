package deploy_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the files of testdata anew")

const (
	base      = "kubernetes/base"
	sidecars  = "kubernetes/overlays/sidecars"
	standard  = "kubernetes/overlays/default"
	snapshots = "kubernetes/overlays/snapshots"
	hotplug   = "kubernetes/overlays/hotplug"
	full      = "kubernetes/overlays/full"
	k3s       = "kubernetes/overlays/k3s"
	microk8s  = "kubernetes/overlays/microk8s"
	k0s       = "kubernetes/overlays/k0s"
	talos     = "kubernetes/overlays/talos"
	openshift = "kubernetes/overlays/openshift"

	examples    = "kubernetes/examples"
	provisioned = "kubernetes/examples/provisioned"
	restored    = "kubernetes/examples/restored"
	attached    = "kubernetes/examples/hotplug"

	components = "kubernetes/components"
)

// TestRendered compares what is rendered with what was reviewed.
func TestRendered(t *testing.T) {
	for name, dir := range map[string]string{
		"base": base, "sidecars": sidecars, "default": standard, "snapshots": snapshots, "hotplug": hotplug,
		"full": full, "k3s": k3s, "microk8s": microk8s, "k0s": k0s, "talos": talos, "openshift": openshift,
		"examples": examples, "provisioned": provisioned, "restored": restored, "attached": attached, "encrypted": encrypted,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := render(t, dir).AsYaml()
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", "rendered-"+name+".yaml"), string(got))
		})
	}
}

func compareGolden(t *testing.T, golden, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("other than in %s (-want +got); if it is meant, run go test . -update:\n%s", golden, diff)
	}
}

// rendered keeps what was rendered: most tests look at all deployments, and none
// changes a file.
var rendered = map[string]resmap.ResMap{}

// render renders a kustomization as kubectl does.
func render(t *testing.T, dir string) resmap.ResMap {
	t.Helper()
	if known, ok := rendered[dir]; ok {
		return known
	}
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy
	resources, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatalf("render %s: %v", dir, err)
	}
	rendered[dir] = resources
	return resources
}

// kinds are the kinds that may be deployed.
var kinds = map[string]func() any{
	"v1 Namespace":                                    func() any { return new(corev1.Namespace) },
	"v1 ServiceAccount":                               func() any { return new(corev1.ServiceAccount) },
	"v1 ConfigMap":                                    func() any { return new(corev1.ConfigMap) },
	"v1 Secret":                                       func() any { return new(corev1.Secret) },
	"v1 PersistentVolume":                             func() any { return new(corev1.PersistentVolume) },
	"v1 PersistentVolumeClaim":                        func() any { return new(corev1.PersistentVolumeClaim) },
	"v1 Pod":                                          func() any { return new(corev1.Pod) },
	"apps/v1 DaemonSet":                               func() any { return new(appsv1.DaemonSet) },
	"apps/v1 Deployment":                              func() any { return new(appsv1.Deployment) },
	"storage.k8s.io/v1 CSIDriver":                     func() any { return new(storagev1.CSIDriver) },
	"storage.k8s.io/v1 StorageClass":                  func() any { return new(storagev1.StorageClass) },
	"networking.k8s.io/v1 NetworkPolicy":              func() any { return new(networkingv1.NetworkPolicy) },
	"rbac.authorization.k8s.io/v1 Role":               func() any { return new(rbacv1.Role) },
	"rbac.authorization.k8s.io/v1 RoleBinding":        func() any { return new(rbacv1.RoleBinding) },
	"rbac.authorization.k8s.io/v1 ClusterRole":        func() any { return new(rbacv1.ClusterRole) },
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding": func() any { return new(rbacv1.ClusterRoleBinding) },
	"snapshot.storage.k8s.io/v1 VolumeSnapshotClass":  func() any { return new(snapshotv1.VolumeSnapshotClass) },
	"snapshot.storage.k8s.io/v1 VolumeSnapshot":       func() any { return new(snapshotv1.VolumeSnapshot) },
}

// load renders a kustomization and decodes each object as strictly as the API
// server does on request: unknown and repeated fields are errors, and upper case
// is not lower case.
func load(t *testing.T, dir string) []any {
	t.Helper()
	var decoded []any
	for _, resource := range render(t, dir).Resources() {
		kind := resource.GetApiVersion() + " " + resource.GetKind()
		newObject, ok := kinds[kind]
		if !ok {
			t.Fatalf("%s renders a %s, which this driver has no use for", dir, kind)
		}
		text, err := resource.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		decoded = append(decoded, decode(t, text, newObject()))
	}
	return decoded
}

func decode(t *testing.T, text []byte, object any) any {
	t.Helper()
	json, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	strict, err := kjson.UnmarshalStrict(json, object)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	for _, err := range strict {
		t.Errorf("%v in:\n%s", err, text)
	}
	return object
}

// all returns the objects of one kind.
func all[T any](objects []any) []*T {
	var found []*T
	for _, object := range objects {
		if object, ok := object.(*T); ok {
			found = append(found, object)
		}
	}
	return found
}

// the returns the one object of its kind.
func the[T any](t *testing.T, objects []any) *T {
	t.Helper()
	found := all[T](objects)
	if len(found) != 1 {
		t.Fatalf("there are %d objects of type %T, expected one", len(found), *new(T))
	}
	return found[0]
}

// A misspelt field must not pass, or these tests prove little.
func TestDecodeIsStrict(t *testing.T) {
	for name, text := range map[string]string{
		"unknown":    "spec: {hostNetwrok: true}",
		"lower case": "spec: {hostnetwork: true}",
	} {
		json, err := yaml.YAMLToJSONStrict([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		strict, err := kjson.UnmarshalStrict(json, new(corev1.Pod))
		if err != nil || len(strict) != 1 {
			t.Errorf("%s: %q is decoded with the errors %v and %v, expected one", name, text, strict, err)
		}
	}
}
