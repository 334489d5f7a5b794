package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
)

// guides are what users read to install the driver, and to be rid of it.
var guides = []string{"deploy.md", "tutorial.md", "upgrade.md", "uninstall.md", "encryption.md"}

// What the guides name is there: directories that are applied, remote ones too, and files
// that are linked.
func TestGuidesNameWhatIsThere(t *testing.T) {
	for _, guide := range guides {
		text := read(t, filepath.Join("../docs", guide))
		var paths []string
		for _, match := range regexp.MustCompile(`(?m)(?:^|[ /])(deploy/[a-zA-Z0-9/._-]+)`).FindAllStringSubmatch(text, -1) {
			paths = append(paths, filepath.Join("..", match[1]))
		}
		for _, match := range regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`).FindAllStringSubmatch(text, -1) {
			if !strings.Contains(match[1], "://") {
				paths = append(paths, filepath.Join("../docs", match[1]))
			}
		}
		if len(paths) == 0 {
			t.Errorf("%s names nothing", guide)
		}
		for _, path := range paths {
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", guide, err)
			}
		}
	}
}

// Each kustomization of the guide is one, and each component that it shows alone goes
// on top of overlays/hotplug.
func TestKustomizationsOfTheGuide(t *testing.T) {
	const remote = "https://github.com/rawblock-csi/rawblock-csi//deploy/"
	rendered := 0
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(read(t, "../docs/deploy.md"), -1) {
		text := block[1]
		if !strings.Contains(text, remote) {
			continue
		}
		if strings.HasPrefix(text, "components:") {
			text = "resources:\n- " + remote + "kubernetes/overlays/hotplug?ref=v0.1.0\n" + text
		}
		dir := t.TempDir()
		text = strings.NewReplacer(remote, from(t, dir, ".")+"/", "?ref=v0.1.0", "").Replace(text)
		for file, content := range map[string]string{"kustomization.yaml": text, "config.yaml": "maxVolumes: 5\n"} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		the[appsv1.DaemonSet](t, load(t, dir))
		rendered++
	}
	if rendered < 4 {
		t.Errorf("docs/deploy.md has %d kustomizations", rendered)
	}
}

// from returns the path of a directory as a kustomization in another directory names it:
// an absolute one is refused.
func from(t *testing.T, dir, to string) string {
	t.Helper()
	to, err := filepath.Abs(to)
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(dir, to)
	if err != nil {
		t.Fatal(err)
	}
	return relative
}
