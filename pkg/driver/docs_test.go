package driver_test

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
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

// tableOf returns the rows of the tables below a heading of the reference, cell by cell.
func tableOf(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("there is no heading %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "| key") || strings.HasPrefix(line, "| ---") || !strings.HasPrefix(line, "| ") {
			continue
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.Trim(cell, " `"))
		}
		rows = append(rows, cells)
	}
	return rows
}

// The keys of attributes and secrets are those that are read.
func TestKeysOfTheReference(t *testing.T) {
	for heading, want := range map[string][]string{
		"Volume attributes": {
			static.DeviceAttribute, static.WWIDAttribute, static.SerialAttribute, static.SizeAttribute,
			driver.EncryptionParameter, driver.KeyParameter,
		},
		"Secrets": {driver.KeySecret, driver.PreviousKeySecret},
	} {
		var got []string
		for _, row := range tableOf(t, heading) {
			got = append(got, row[0])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-code +page):\n%s", heading, diff)
		}
	}
}

// How many pods of a node may use a volume of each access mode.
func TestAccessModesOfTheReference(t *testing.T) {
	rows := tableOf(t, "Access modes")[1:] // The first has the headings.
	if len(rows) < 4 {
		t.Fatalf("the table has %q", rows)
	}
	for _, row := range rows {
		mode, err := volume.ParseAccessMode(row[1])
		if err != nil {
			t.Error(err)
		}
		if several := strings.HasPrefix(row[2], "several pods"); several != mode.MultiTarget() {
			t.Errorf("%s: %s", mode, row[2])
		}
		if cannotWrite := strings.Contains(row[2], "none can write"); cannotWrite != mode.ReadOnly() {
			t.Errorf("%s: %s", mode, row[2])
		}
	}
}
