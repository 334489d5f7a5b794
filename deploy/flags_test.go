package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// build builds the plugin. It is another module: the source is beside this directory.
func build(t *testing.T) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "rawblock-csi")
	// With the flags of make build, which then has compiled all of it.
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./cmd/rawblock-csi")
	build.Dir, build.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, output)
	}
	return binary
}

// TestFlagsExist asks the plugin itself which flags it has.
func TestFlagsExist(t *testing.T) {
	binary := build(t)
	// Whether asking for help is a failure, flag packages disagree.
	help, _ := exec.CommandContext(t.Context(), binary, "--help").CombinedOutput()
	exists := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^\s*--?([a-z][a-z-]*)\b`).FindAllSubmatch(help, -1) {
		exists[string(match[1])] = true
	}
	eachDeployment(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
		_, flags := plugin(t, pod)
		for name := range flags {
			if !exists[name] {
				t.Errorf("the plugin has no flag --%s; it says:\n%s", name, help)
			}
		}
	})
}

// The plugin itself reads each configuration. It does so before it looks at its other
// flags, so that without the name of a node that is what it complains of, and it has
// done nothing.
func TestConfigIsAccepted(t *testing.T) {
	binary := build(t)
	complaint := func(t *testing.T, text string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		output, err := exec.CommandContext(t.Context(), binary, "--config="+file).CombinedOutput()
		if err == nil {
			t.Fatalf("the plugin runs without --node-id:\n%s", output)
		}
		return string(output)
	}
	accepted := func(t *testing.T, objects []any) {
		t.Helper()
		text := the[corev1.ConfigMap](t, objects).Data["config.yaml"]
		if got := complaint(t, text); !strings.Contains(got, "--node-id") {
			t.Errorf("the plugin says: %s", got)
		}
		if got := complaint(t, text+"\nunknown: true\n"); !strings.Contains(got, `"unknown"`) {
			t.Errorf("of an unknown key the plugin says: %s", got)
		}
	}
	eachDeployment(t, func(t *testing.T, objects []any, _ corev1.PodSpec) { accepted(t, objects) })
	for name, values := range map[string]string{
		"chart": "", "chart with everything": read(t, everything), "chart without pools": "{config: {pools: []}, provisioning: {enabled: false}}",
	} {
		t.Run(name, func(t *testing.T) { accepted(t, loadChart(t, values)) })
	}
}
