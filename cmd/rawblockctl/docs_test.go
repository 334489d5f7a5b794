package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/reference/rawblockctl.md anew")

// The reference is what the tool says of itself.
func TestReference(t *testing.T) {
	const path = "../../docs/reference/rawblockctl.md"
	page := new(strings.Builder)
	page.WriteString("# rawblockctl\n\nThe tool of a node's administrator: what there is on a node, what is wrong with it, and\n[hot attach](../hot-attach.md). [Why it works without a plugin](../adr/0018-operator-tool.md). This\npage is what its `--help` says.\n")
	for _, command := range []string{
		"", "status", "volumes", "disks", "capacity", "inspect", "doctor", "wipe", "release",
		"attach", "detach", "list", "version", "completion",
	} {
		var out, err bytes.Buffer
		if code := run(t.Context(), append(strings.Fields(command), "--help"), &out, &err); code != exitDone {
			t.Fatalf("%s --help ended with %d: %s", command, code, &err)
		}
		page.WriteString("\n## " + strings.TrimSpace("rawblockctl "+command) + "\n\n```\n" + out.String() + "```\n")
	}
	if *update {
		must(t, os.WriteFile(path, []byte(page.String()), 0o644))
	}
	got, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(page.String(), string(got)); diff != "" {
		t.Errorf("%s is not what the tool says (-tool +page); run this test with -update:\n%s", path, diff)
	}
}
