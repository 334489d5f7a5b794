package deploy_test

import (
	"encoding/json"
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

// everything sets each value of the chart to another one than the default.
const everything = "testdata/values-everything.yaml"

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestChartRendered compares what the chart renders to with what was reviewed.
func TestChartRendered(t *testing.T) {
	for name, values := range map[string]string{"default": "", "everything": read(t, everything)} {
		t.Run(name, func(t *testing.T) {
			compareGolden(t, filepath.Join("testdata", "chart-"+name+".yaml"), strings.Join(documents(t, values), "---\n"))
		})
	}
}

// A value that is misspelt or makes no sense must not be installed.
func TestChartRefuses(t *testing.T) {
	for name, test := range map[string]struct{ values, want string }{
		"unknown value":              {"kubeletdir: /var/lib/kubelet", "kubeletdir"},
		"unknown in a mapping":       {"hotplug: {enable: true}", "enable"},
		"relative kubelet directory": {"kubeletDir: var/lib/kubelet", "/kubeletDir"},
		"directory that ends in /":   {"kubeletDir: /var/lib/kubelet/", "/kubeletDir"},
		"key of the configuration":   {"config: {hotplug: {attachmentPods: true}}", "hotplug"},
		"pool of no kind":            {"config: {pools: [{name: a}]}", "/config/pools/0"},
		"pool of two kinds":          {"config: {pools: [{name: a, file: {directory: /srv/a}, disk: {match: {transport: nvme}}}]}", "/config/pools/0"},
		"pool that matches all":      {"config: {pools: [{name: a, disk: {match: {}}}]}", "/config/pools/0/disk/match"},
		"unknown transport":          {"config: {pools: [{name: a, disk: {match: {transport: nvem}}}]}", "transport"},
		"unknown parameter":          {"storageClasses: [{name: a, parameters: {pol: files}}]", "pol"},
		"parameter that is no text":  {"storageClasses: [{name: a, parameters: {thin: true}}]", "thin"},
		"class of no pool":           {"storageClasses: [{name: a, parameters: {pool: fast}}]", `"fast"`},
		"nothing to provision":       {"config: {pools: []}", "provisioning.enabled=false"},
		"nothing makes snapshots":    {"{snapshots: {enabled: true}, config: {pools: [{name: a, disk: {match: {transport: nvme}}}]}}", "snapshots.enabled"},
		"nobody restores":            {"{snapshots: {enabled: true}, provisioning: {enabled: false}}", "provisioning.enabled=true"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := template(t, test.values)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: the error is %v, expected %q in it", test.values, err, test.want)
			}
		})
	}
}

// Nowhere in the schema may an unknown key stand, so that a misspelt one is an error.
func TestChartSchemaIsStrict(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal([]byte(read(t, chartDir+"/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	checked := 0
	var walk func(where string, node any)
	walk = func(where string, node any) {
		object, ok := node.(map[string]any)
		if !ok {
			return
		}
		if _, ok := object["properties"]; ok && object["type"] == "object" {
			checked++
			if object["additionalProperties"] != false {
				t.Errorf("%s takes unknown keys", where)
			}
		}
		for key, child := range object {
			walk(where+"/"+key, child)
		}
	}
	walk("", schema)
	if checked < 10 {
		t.Errorf("only %d objects were found", checked)
	}
}

// Each value is tried with another one than its default.
func TestEverythingIsEverything(t *testing.T) {
	var defaults, given map[string]any
	for file, into := range map[string]*map[string]any{chartDir + "/values.yaml": &defaults, everything: &given} {
		if err := yaml.UnmarshalStrict([]byte(read(t, file)), into); err != nil {
			t.Fatal(err)
		}
	}
	// Off, they are tried by TestChartIsTheOverlay.
	same := []string{"/provisioning/enabled", "/expansion/enabled"}
	var compare func(where string, a, b any)
	compare = func(where string, a, b any) {
		first, isMap := a.(map[string]any)
		second, _ := b.(map[string]any)
		if isMap && len(first) > 0 && !strings.HasSuffix(where, "nodeSelector") {
			for key := range first {
				compare(where+"/"+key, first[key], second[key])
			}
			return
		}
		if cmp.Equal(a, b) && !slices.Contains(same, where) {
			t.Errorf("%s: %s is %v, as by default", everything, where, b)
		}
		if b == nil {
			t.Errorf("%s does not set %s", everything, where)
		}
	}
	compare("", defaults, given)
}

// The pods are replaced when, and only when, what they read has changed.
func TestChartConfigReplacesPods(t *testing.T) {
	sum := func(values string) string {
		return the[appsv1.DaemonSet](t, loadChart(t, values)).Spec.Template.Annotations["checksum/config"]
	}
	first := sum("")
	if first == "" || sum("logLevel: 4") != first {
		t.Errorf("the sum is %q, and changes without need", first)
	}
	for _, values := range []string{"config: {maxVolumes: 5}", "hotplug: {enabled: true}"} {
		if sum(values) == first {
			t.Errorf("%s: the pods do not read their new configuration", values)
		}
	}
}

// A directory of volumes must be the host's, wherever it is.
func TestChartMountsItsPools(t *testing.T) {
	objects := loadChart(t, read(t, everything))
	pod := the[appsv1.DaemonSet](t, objects).Spec.Template.Spec
	container, _ := plugin(t, pod)
	outside := 0
	for _, pool := range settingsOf(t, objects).Pools {
		if pool.File == nil {
			continue
		}
		if !isIn(pool.File.Directory, poolsDir) {
			outside++
		}
		if host, mount := hostPath(pod, container, pool.File.Directory); host != pool.File.Directory || mount.ReadOnly {
			t.Errorf("pool %s: %s is %q on the host", pool.Name, pool.File.Directory, host)
		}
	}
	if outside == 0 {
		t.Errorf("no pool of %s is outside of %s", everything, poolsDir)
	}
}

func TestChartClasses(t *testing.T) {
	var names []string
	for _, class := range all[storagev1.StorageClass](loadChart(t, read(t, everything))) {
		names = append(names, class.Name)
		if class.Provisioner != driverName || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer {
			t.Errorf("class %s: %v", class.Name, class)
		}
		isFirst := class.Name == "first"
		if *class.AllowVolumeExpansion != isFirst || (class.Annotations["storageclass.kubernetes.io/is-default-class"] == "true") != isFirst {
			t.Errorf("class %s grows: %t, annotations: %v", class.Name, *class.AllowVolumeExpansion, class.Annotations)
		}
		if want := map[bool]corev1.PersistentVolumeReclaimPolicy{true: "Delete", false: "Retain"}[isFirst]; *class.ReclaimPolicy != want {
			t.Errorf("class %s: reclaimPolicy is %s", class.Name, *class.ReclaimPolicy)
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"first", "second"}, names); diff != "" {
		t.Errorf("classes (-want +got):\n%s", diff)
	}
}

// Helm makes a namespace without labels: what docs/deploy.md says to do must give it
// those of the manifests.
func TestNamespaceOfTheChart(t *testing.T) {
	text := read(t, "../docs/deploy.md")
	for label, value := range the[corev1.Namespace](t, load(t, base)).Labels {
		if strings.HasPrefix(label, "pod-security") && !strings.Contains(text, label+"="+value) {
			t.Errorf("docs/deploy.md does not set %s=%s", label, value)
		}
	}
}
