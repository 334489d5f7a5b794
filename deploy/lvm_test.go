package deploy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
)

// The component shows the plugin the processes of the host, and changes nothing else, on
// top of any overlay. The chart has the same.
func TestLVMComponent(t *testing.T) {
	for _, overlay := range []string{base, standard, hotplug} {
		dir := t.TempDir()
		text := "resources: [" + from(t, dir, overlay) + "]\ncomponents: [" + from(t, dir, components+"/lvm") + "]\n"
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		want := *the[appsv1.DaemonSet](t, load(t, overlay)).Spec.Template.Spec.DeepCopy()
		want.HostPID = true
		got := the[appsv1.DaemonSet](t, load(t, dir)).Spec.Template.Spec
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: the component changes more, or less:\n%s", overlay, diff)
		}
	}
	for _, document := range documents(t, "lvm: {enabled: true}") {
		if !strings.Contains(document, "kind: DaemonSet") {
			continue
		}
		var got appsv1.DaemonSet
		decode(t, []byte(document), &got)
		if !got.Spec.Template.Spec.HostPID {
			t.Error("the chart does not show the plugin the processes of the host")
		}
	}
}
