package main

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The reference has each flag with its default, and none that there is not.
func TestFlagsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference.md")
	rig.Must(t, err)
	got := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(-[a-z-]+)` \\|([^|]*)\\| .*[.] \\|$").FindAllStringSubmatch(string(page), -1) {
		got[row[1]] = strings.Trim(row[2], "` ")
	}
	want := map[string]string{}
	new(flags).flagSet().VisitAll(func(f *flag.Flag) {
		name := "--" + f.Name
		if len(f.Name) == 1 {
			name = "-" + f.Name
		}
		want[name] = strings.TrimSuffix(f.DefValue, "false")
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/reference.md (-code +page):\n%s", diff)
	}
}
