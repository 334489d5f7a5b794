package hotplug

import (
	"os"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What users copy from is read as it is meant.
func TestExamples(t *testing.T) {
	line := regexp.MustCompile(`(?m)^ +` + regexp.QuoteMeta(Annotation) + `: (.+)$`)
	for file, want := range map[string]Pod{
		"../../deploy/kubernetes/examples/hotplug/attachment.yaml": {Namespace: "default", Name: "target", Container: "app"},
		"../../docs/hot-attach.md":                                 {Namespace: "default", Name: "db-0", Container: "postgres"},
	} {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found := line.FindAllSubmatch(text, -1)
			if len(found) != 1 {
				t.Fatalf("the annotation stands there %d times", len(found))
			}
			target, path, readOnly, err := parseAnnotation("default", string(found[0][1]))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Target{Pod: &want}, target); diff != "" || path != "/dev/xvdb" || readOnly {
				t.Errorf("path %s, read-only %t, target (-want +got):\n%s", path, readOnly, diff)
			}
		})
	}
}
