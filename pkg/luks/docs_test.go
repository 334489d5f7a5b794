package luks_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The errors that the guide explains are those that there are.
func TestGuideHasTheErrors(t *testing.T) {
	guide, err := os.ReadFile("../../docs/encryption.md")
	rig.Must(t, err)
	var source strings.Builder
	for _, room := range []string{".", "../driver"} {
		files, err := filepath.Glob(room + "/*.go")
		rig.Must(t, err)
		for _, file := range files {
			content, err := os.ReadFile(file)
			rig.Must(t, err)
			if !strings.HasSuffix(file, "_test.go") {
				source.Write(content)
			}
		}
	}
	rows := regexp.MustCompile("(?m)^\\| (`[^|]*`) \\| [^|]*\\. \\|$").FindAllStringSubmatch(string(guide), -1)
	if len(rows) < 10 {
		t.Errorf("the guide has %d rows", len(rows))
	}
	for _, row := range rows {
		for text := range strings.SplitSeq(strings.Trim(row[1], "`"), "`, `") {
			if !strings.Contains(source.String(), text) {
				t.Errorf("no error says %q", text)
			}
		}
	}
}
