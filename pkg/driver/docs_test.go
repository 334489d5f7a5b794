package driver

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"testing"
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
