package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// The same source gives the same digest in another directory, with nothing of the
// first build in the cache.
func TestSameDigestTwice(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	first, second := t.TempDir(), t.TempDir()
	build := func(source, dir string) {
		t.Helper()
		args := []string{"-source", source, "-o", filepath.Join(dir, "dist"), "-version", "v0.0.1", "-platforms", "linux/amd64"}
		if err := run(t.Context(), args); err != nil {
			t.Fatal(err)
		}
	}
	build("../..", first)
	elsewhere := filepath.Join(second, "elsewhere")
	for _, name := range []string{"cmd", "pkg"} {
		if err := os.CopyFS(filepath.Join(elsewhere, name), os.DirFS(filepath.Join("../..", name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(elsewhere, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GOCACHE", filepath.Join(second, "cache"))
	build(elsewhere, second)
	for _, name := range []string{"image/index.json", "rawblock-csi-amd64.tar", "rawblock-csi-amd64.cdx.json"} {
		one, err := os.ReadFile(filepath.Join(first, "dist", name))
		if err != nil {
			t.Fatal(err)
		}
		two, err := os.ReadFile(filepath.Join(second, "dist", name))
		if err != nil {
			t.Fatal(err)
		}
		if string(one) != string(two) {
			t.Errorf("%s differs between two builds", name)
		}
	}
	checkImage(t, filepath.Join(first, "dist"))
	checkBill(t, filepath.Join(first, "dist", "rawblock-csi-amd64.cdx.json"))
}

// checkImage looks whether the layout is whole.
func checkImage(t *testing.T, dist string) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(filepath.Join(dist, "image"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
}

// checkBill compares the bill with what the module says that it needs.
func checkBill(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		Components []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal(data, &bill); err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, component := range bill.Components {
		versions[component.Name] = component.Version
	}
	command := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}", "./cmd/...")
	command.Dir = "../.."
	listed, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(listed)) {
		name, version, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && versions[name] != version {
			t.Errorf("the bill has %s in version %q, not %s", name, versions[name], version)
		}
	}
	for _, name := range []string{"rawblock-csi", "rawblockctl", "stdlib"} {
		if versions[name] == "" {
			t.Errorf("the bill lacks %s", name)
		}
	}
}
