package driver_test

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The first line of the architecture page leads a newcomer through
// NodePublishVolume, file by file.
func TestWayOfNodePublishVolumeExists(t *testing.T) {
	const docs = "../../docs"
	page, err := os.Open(filepath.Join(docs, "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	lines := bufio.NewScanner(page)
	lines.Scan()
	files := regexp.MustCompile(`\]\(([^)]+\.go)\)`).FindAllStringSubmatch(lines.Text(), -1)
	if len(files) < 5 {
		t.Fatalf("the first line names %d files: %s", len(files), lines.Text())
	}
	for _, file := range files {
		if _, err := os.Stat(filepath.Join(docs, file[1])); err != nil {
			t.Error(err)
		}
	}
}

// reasonsOfThePage returns the reasons that the page about health explains.
func reasonsOfThePage(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile("../../docs/reference/health.md")
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Za-z]+)` \\| (DEGRADED|INACCESSIBLE|DATA_LOSS) \\| [^|]+\\. \\| [^|]+\\. \\|$").FindAllStringSubmatch(string(page), -1) {
		reasons = append(reasons, row[1])
	}
	return reasons
}

// Each reason is explained, and none that there is not.
func TestHealthPage(t *testing.T) {
	var want []string
	for _, reason := range volume.Reasons() {
		want = append(want, string(reason))
	}
	if diff := cmp.Diff(want, reasonsOfThePage(t)); diff != "" {
		t.Errorf("in the code, not on the page (-), and the other way round (+):\n%s", diff)
	}
}
