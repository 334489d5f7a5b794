package volume_test

import (
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

const pvc = "pvc-0a1b2c3d-1111-2222-3333-444455556666"

func TestParseID(t *testing.T) {
	for text, want := range map[string]volume.ID{
		"files/" + pvc + "@node-1":          {Pool: "files", Name: pvc, Node: "node-1"},
		"a/b@c":                             {Pool: "a", Name: "b", Node: "c"},
		"fast-1/Data_0.x@node.example.com":  {Pool: "fast-1", Name: "Data_0.x", Node: "node.example.com"},
		"":                                  {},
		"files":                             {},
		"files/" + pvc:                      {},
		"/" + pvc + "@node-1":               {},
		"files/@node-1":                     {},
		"files/" + pvc + "@":                {},
		"files/" + pvc + "@a/b":             {},
		"files/" + pvc + "@a@b":             {},
		"files/../x@node-1":                 {},
		"files/.x@node-1":                   {},
		"Files/x@node-1":                    {},
		"-files/x@node-1":                   {},
		"files-/x@node-1":                   {},
		strings.Repeat("p", 25) + "/x@node": {},
		"/dev/sdb":                          {},
		"disk-1":                            {},
	} {
		got, ok := volume.ParseID(text)
		if got != want || ok != (want != volume.ID{}) {
			t.Errorf("%q is read as %+v, %t; want %+v", text, got, ok, want)
		}
		if ok && got.String() != text {
			t.Errorf("%q is written as %q", text, got)
		}
	}
}

func TestNames(t *testing.T) {
	plain := []string{"a", pvc, "x-0a1b2c3d-1111-2222-3333-444455556666", "Data_0.x", strings.Repeat("n", 36)}
	for _, name := range plain {
		if got := volume.NameOf(name); got != name {
			t.Errorf("%q is called %q", name, got)
		}
	}
	for _, requested := range []string{
		"", ".hidden", "..", "a/b", "a b", "ü", "-a", strings.Repeat("n", 37), strings.Repeat("ü", 64),
		"pvc-0a1b2c3d111122223333444455556666", // The label of pvc.
		"long-0a1b2c3d-1111-2222-3333-444455556666",
	} {
		got := volume.NameOf(requested)
		if got == requested || got != volume.NameOf(requested) || got == volume.NameOf(requested+"x") {
			t.Errorf("%q is called %q", requested, got)
		}
	}
	if got := volume.SnapshotNameOf("snapshot-0a1b2c3d-1111-2222-3333-444455556666"); !strings.HasPrefix(got, "snapshot-") {
		t.Errorf("a snapshot of Kubernetes is called %q", got)
	}
}

// Whatever a volume is called, its name fits everywhere, and its label says it.
func FuzzNameOf(f *testing.F) {
	for _, name := range []string{"a", pvc, "pvc-0a1b2c3d111122223333444455556666", "ü/../x", strings.Repeat("n", 37)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, requested string) {
		name := volume.NameOf(requested)
		label := volume.Label(name)
		if len(label) > 36 || volume.NameOfLabel(label) != name {
			t.Errorf("%q is called %q, with the label %q, which is %q", requested, name, label, volume.NameOfLabel(label))
		}
		if volume.NameOf(name) != name {
			t.Errorf("%q is called %q, and that %q", requested, name, volume.NameOf(name))
		}
		for _, name := range []string{name, volume.SnapshotNameOf(requested)} {
			id := volume.ID{Pool: "files", Name: name, Node: "node-1"}
			if got, ok := volume.ParseID(id.String()); !ok || got != id {
				t.Errorf("%q: %s is read as %+v", requested, id, got)
			}
		}
	})
}

func FuzzParseID(f *testing.F) {
	f.Add("files/" + pvc + "@node-1")
	f.Add("a/b/c@d")
	f.Add("@/")
	f.Fuzz(func(t *testing.T, text string) {
		if id, ok := volume.ParseID(text); ok && (id.String() != text || strings.Contains(id.Name, "/") || strings.HasPrefix(id.Name, ".")) {
			t.Errorf("%q is read as %+v", text, id)
		}
	})
}
