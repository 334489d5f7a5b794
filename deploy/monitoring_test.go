package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The component goes on top of an overlay. What is in it, a module of its own tests.
func TestMonitoringComponent(t *testing.T) {
	dir := t.TempDir()
	relative := func(path string) string {
		absolute, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		back, err := filepath.Rel(dir, absolute)
		if err != nil {
			t.Fatal(err)
		}
		return back
	}
	text := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [" + relative(standard) + "]\ncomponents: [" + relative("monitoring") + "]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, object := range render(t, dir).Resources() {
		switch object.GetKind() {
		case "PodMonitor", "PrometheusRule":
			found = append(found, object.GetKind()+" "+object.GetNamespace())
		case "ConfigMap":
			if data := object.GetDataMap()["rawblock-csi.json"]; data != "" && object.GetLabels()["grafana_dashboard"] == "1" {
				found = append(found, "dashboard "+object.GetNamespace())
			}
		}
	}
	slices.Sort(found)
	if want := []string{"PodMonitor rawblock-csi", "PrometheusRule rawblock-csi", "dashboard rawblock-csi"}; !slices.Equal(found, want) {
		t.Errorf("got %q, want %q", found, want)
	}
	// The monitor finds the pods that there are.
	if labels := plugins(t, dir); labels["app.kubernetes.io/name"] != "rawblock-csi" {
		t.Errorf("the pods have the labels %v", labels)
	}
}

// plugins returns the labels of the plugin's pods.
func plugins(t *testing.T, dir string) map[string]string {
	t.Helper()
	for _, object := range render(t, dir).Resources() {
		if object.GetKind() == "DaemonSet" {
			field, err := object.GetFieldValue("spec.template.metadata.labels")
			if err != nil {
				t.Fatal(err)
			}
			labels := map[string]string{}
			for name, value := range field.(map[string]any) {
				labels[name], _ = value.(string)
			}
			return labels
		}
	}
	return nil
}
