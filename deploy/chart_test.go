package deploy_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"helm.sh/helm/v4/pkg/chart/common"
	chartutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	chartDir = "helm/rawblock-csi"
	// namespace is that of the manifests. A chart is installed where the user says.
	namespace = "rawblock-csi"
)

// charts are the overlays that the chart can be, and the values that make it so.
var charts = map[string]string{
	standard:  "",
	snapshots: "snapshots: {enabled: true}",
	hotplug:   "hotplug: {enabled: true}",
	full:      "{snapshots: {enabled: true}, hotplug: {enabled: true}}",
	base:      "{provisioning: {enabled: false}, expansion: {enabled: false}}",
	k3s:       "{snapshots: {enabled: true}, hotplug: {enabled: true, runtimeDir: /run/k3s/containerd}}",
	microk8s: `{snapshots: {enabled: true}, hotplug: {enabled: true, runtimeDir: /var/snap/microk8s/common/run},
		kubeletDir: /var/snap/microk8s/common/var/lib/kubelet}`,
	k0s:       "{snapshots: {enabled: true}, hotplug: {enabled: true, runtimeDir: /run/k0s}, kubeletDir: /var/lib/k0s/kubelet}",
	openshift: "{snapshots: {enabled: true}, hotplug: {enabled: true, runtimeDir: /run/crio}, openshift: true}",
}

// template renders the chart as "helm template" does.
func template(t *testing.T, values string) (map[string]string, error) {
	t.Helper()
	var given map[string]any
	if err := yaml.UnmarshalStrict([]byte(values), &given); err != nil {
		t.Fatalf("%v in:\n%s", err, values)
	}
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	release := common.ReleaseOptions{Name: "rawblock", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(chart, given, release, nil)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.RenderWithContext(t.Context(), chart, all)
}

// documents returns the objects of what the chart renders to, as text.
func documents(t *testing.T, values string) []string {
	t.Helper()
	rendered, err := template(t, values)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for name, text := range rendered {
		if filepath.Ext(name) != ".yaml" {
			continue
		}
		for document := range strings.SplitSeq("\n"+text, "\n---\n") {
			if strings.TrimSpace(document) != "" {
				found = append(found, strings.TrimSpace(document)+"\n")
			}
		}
	}
	slices.Sort(found)
	return found
}

// loadChart renders the chart, and decodes its objects as strictly as those of the
// kustomizations.
func loadChart(t *testing.T, values string) []any {
	t.Helper()
	var decoded []any
	for _, document := range documents(t, values) {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &meta); err != nil {
			t.Fatalf("%v in:\n%s", err, document)
		}
		newObject, ok := kinds[meta.APIVersion+" "+meta.Kind]
		if !ok {
			t.Fatalf("the chart renders a %s %s, which this driver has no use for", meta.APIVersion, meta.Kind)
		}
		decoded = append(decoded, decode(t, []byte(document), newObject()))
	}
	return decoded
}

// The chart and the overlays are written twice, and must not drift apart.
func TestChartIsTheOverlay(t *testing.T) {
	for dir, values := range charts {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			want, got := byName(t, load(t, dir)), byName(t, loadChart(t, values))
			// Helm makes the namespace, or finds it; see TestNamespaceOfTheChart.
			delete(want, "*v1.Namespace rawblock-csi")
			inAnyOrder := []cmp.Option{
				cmpopts.SortSlices(func(a, b corev1.Container) bool { return a.Name < b.Name }),
				cmpopts.SortSlices(func(a, b corev1.Volume) bool { return a.Name < b.Name }),
				cmpopts.SortSlices(func(a, b corev1.VolumeMount) bool { return a.MountPath < b.MountPath }),
			}
			if diff := cmp.Diff(want, got, inAnyOrder...); diff != "" {
				t.Errorf("the chart is other than %s (-overlay +chart):\n%s", dir, diff)
			}
			if first := the[appsv1.DaemonSet](t, loadChart(t, values)).Spec.Template.Spec.Containers[0].Name; first != pluginName {
				t.Errorf("the first container is %s", first)
			}
		})
	}
}

// byName returns the objects by kind and name, without what cannot be the same:
// labels by which helm and kustomize mark what is theirs, and how the configuration
// is tied to the pods.
func byName(t *testing.T, objects []any) map[string]any {
	t.Helper()
	hash := regexp.MustCompile(`^(rawblock-csi-config)-[0-9a-z]{10}$`)
	found := map[string]any{}
	for _, object := range objects {
		meta := object.(metav1.Object)
		labels := meta.GetLabels()
		for _, label := range []string{"app.kubernetes.io/part-of", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"} {
			delete(labels, label)
		}
		// All objects of the manifests have it but the ConfigMap, which is generated.
		delete(labels, "app.kubernetes.io/name")
		if len(labels) == 0 {
			meta.SetLabels(nil)
		}
		meta.SetName(hash.ReplaceAllString(meta.GetName(), "$1"))
		switch object := object.(type) {
		case *corev1.ConfigMap:
			object.Data["config.yaml"] = canonical(t, object.Data["config.yaml"])
		case *appsv1.DaemonSet:
			delete(object.Spec.Template.Annotations, "checksum/config")
			for _, volume := range object.Spec.Template.Spec.Volumes {
				if volume.ConfigMap != nil {
					volume.ConfigMap.Name = hash.ReplaceAllString(volume.ConfigMap.Name, "$1")
				}
			}
		}
		key := fmt.Sprintf("%T %s", object, meta.GetName())
		if _, ok := found[key]; ok {
			t.Errorf("%s is rendered twice", key)
		}
		found[key] = object
	}
	return found
}

// canonical returns a document without comments, its keys in order.
func canonical(t *testing.T, text string) string {
	t.Helper()
	json, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return string(json)
}

// The chart and the plugin are released together.
func TestChartHasThePluginsVersion(t *testing.T) {
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	container, _ := plugin(t, the[appsv1.DaemonSet](t, load(t, base)).Spec.Template.Spec)
	_, tag, _ := strings.Cut(container.Image, ":")
	if chart.Metadata.AppVersion != tag || "v"+chart.Metadata.Version != tag {
		t.Errorf("the chart is version %s of %s, expected %s", chart.Metadata.Version, chart.Metadata.AppVersion, tag)
	}
}

// TestChartIsLinted is "helm lint", of which a warning is a failure too.
func TestChartIsLinted(t *testing.T) {
	for _, values := range charts {
		var given map[string]any
		if err := yaml.Unmarshal([]byte(values), &given); err != nil {
			t.Fatal(err)
		}
		for _, message := range lint.RunAll(chartDir, given, namespace).Messages {
			// Info: that the chart has no icon.
			if message.Severity > support.InfoSev {
				t.Errorf("%s (values: %s)", message, values)
			}
		}
	}
}
