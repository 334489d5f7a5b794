package vm_test

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// The page of failures, and the line in it that what tests have seen begins after.
const (
	failurePage = "../../docs/explanation/failure-modes.md"
	failureMark = "<!-- What follows is written by TestVMFailureModes: make failure-modes -->\n"
)

var update = flag.Bool("update", false, "write the page of failures")

// What people see of each failure is what the page says.
func TestVMFailureModes(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	rig.Must(t, guest.Put(t.Context(), rig.Build(t, ""), rig.ProgramInGuest("")))
	page, err := os.ReadFile(failurePage)
	rig.Must(t, err)
	text, written, found := strings.Cut(string(page), failureMark)
	if !found {
		t.Fatalf("%s has no line %s", failurePage, failureMark)
	}
	if !*update {
		rig.Must(t, guest.Put(t.Context(), failurePage, "/var/tmp/failures.md"))
	}
	guest.TestWith(t, []string{"TMPDIR=/var/tmp", "RAWBLOCK_FAILURES=/var/tmp/failures.md"}, "cmd/rawblockctl", "-test.run=^TestVMFailureModes$")
	if t.Failed() {
		return
	}
	var seen bytes.Buffer
	rig.Must(t, guest.Run(t.Context(), &seen, "cat", "/var/tmp/failures.md"))
	got := "\n" + strings.TrimSpace(seen.String()) + "\n"
	if got == written {
		return
	}
	if *update {
		rig.Must(t, os.WriteFile(failurePage, []byte(text+failureMark+got), 0o600))
		return
	}
	t.Errorf("what is seen is not what %s says; run the test with -update (-page +seen):\n%s", failurePage, cmp.Diff(written, got))
}
