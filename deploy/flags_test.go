package deploy_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestFlagsExist asks the plugin itself which flags it has. It is another module:
// it is built from the source beside this folder.
func TestFlagsExist(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "rawblock-csi")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/rawblock-csi")
	build.Dir = ".."
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, output)
	}
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
