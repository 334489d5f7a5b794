package config_test

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

func TestParse(t *testing.T) {
	byID := config.Devices{Allow: []config.Pattern{"/dev/disk/by-id/*"}}
	for name, test := range map[string]struct {
		text string
		want config.Config
	}{
		"empty file":         {"", config.Config{Devices: byID}},
		"comments only":      {"# nothing\n", config.Config{Devices: byID}},
		"empty document":     {"---\n", config.Config{Devices: byID}},
		"one key":            {"maxVolumes: 20\n", config.Config{MaxVolumes: 20, Devices: byID}},
		"largest number":     {"maxVolumes: 9223372036854775807\n", config.Config{MaxVolumes: math.MaxInt64, Devices: byID}},
		"unlimited":          {"maxVolumes: 0\n", config.Config{Devices: byID}},
		"nothing is allowed": {"devices: {allow: []}\n", config.Config{Devices: config.Devices{Allow: []config.Pattern{}}}},
		"devices without allow": {
			"devices: {}\n", config.Config{Devices: byID},
		},
		"patterns replace the default": {
			"devices:\n  allow:\n  - /dev/disk/by-path/*\n  - /dev/nvme[0-9]n1\n",
			config.Config{Devices: config.Devices{Allow: []config.Pattern{"/dev/disk/by-path/*", "/dev/nvme[0-9]n1"}}},
		},
		"JSON": {`{"maxVolumes": 5, "devices": {"allow": ["/dev/sdb"]}}`, config.Config{MaxVolumes: 5, Devices: config.Devices{Allow: []config.Pattern{"/dev/sdb"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Parse([]byte(test.text))
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

// Every error names the line, what stands there and what was expected.
func TestParseRefuses(t *testing.T) {
	const (
		count   = "expected a whole number that is not negative"
		pattern = "expected an absolute path such as /dev/disk/by-id/*"
	)
	for name, test := range map[string]struct {
		text string
		says []string
	}{
		"unknown key":            {"maxVolumes: 1\nmaxvolumes: 2\n", []string{"line 2", "maxvolumes is unknown", "expected one of: maxVolumes, devices"}},
		"unknown key of devices": {"devices:\n  deny: []\n", []string{"line 2", "deny is unknown in devices", "expected: allow"}},
		"two unknown keys":       {"a: 1\nb: 2\n", []string{"line 1: field a", "line 2: field b"}},
		"key twice":              {"maxVolumes: 1\nmaxVolumes: 2\n", []string{"line 2", `"maxVolumes" already defined at line 1`}},
		"negative count":         {"\nmaxVolumes: -1\n", []string{"line 2", `"-1" is not a count`, count}},
		"count in words":         {"maxVolumes: many\n", []string{"line 1", `"many" is not a count`, count}},
		"count in quotes":        {"maxVolumes: '5'\n", []string{"line 1", `"5" is not a count`, count}},
		"count too large":        {"maxVolumes: 9223372036854775808\n", []string{"line 1", "is not a count", count}},
		"fraction as count":      {"maxVolumes: 1.5\n", []string{"line 1", `"1.5" is not a count`, count}},
		"malformed after a star": {"devices:\n  allow: ['/dev/*[']\n", []string{"line 2", `"/dev/*[" is not a path pattern`, pattern}},
		"list as count":          {"maxVolumes: [1]\n", []string{"line 1", "is not a count", count}},
		"list as devices":        {"devices:\n- /dev/sdb\n", []string{"line 2", "expected a mapping with the key allow"}},
		"text as patterns":       {"devices:\n  allow: /dev/sdb\n", []string{"line 2", "`/dev/sdb`", "expected a list of path patterns"}},
		"relative pattern":       {"devices:\n  allow:\n  - /dev/sdb\n  - dev/sdc\n", []string{"line 4", `"dev/sdc" is not a path pattern`, pattern}},
		"empty pattern":          {"devices:\n  allow: ['']\n", []string{"line 2", `"" is not a path pattern`, pattern}},
		"pattern that climbs":    {"devices:\n  allow: [/dev/disk/../../etc/*]\n", []string{"line 2", "is not a path pattern", pattern}},
		"pattern with a slash":   {"devices:\n  allow: [/dev/disk/by-id/]\n", []string{"line 2", "is not a path pattern", pattern}},
		"malformed pattern":      {"devices:\n  allow: ['/dev/[a']\n", []string{"line 2", `"/dev/[a" is not a path pattern`, pattern}},
		"number as pattern":      {"devices:\n  allow: [5]\n", []string{"line 2", `"5" is not a path pattern`, pattern}},
		"mapping as pattern":     {"devices:\n  allow: [{a: b}]\n", []string{"line 2", "is not a path pattern", pattern}},
		"list as file":           {"\n- maxVolumes\n", []string{"line 2", "expected a mapping"}},
		"text as file":           {"hello\n", []string{"line 1", "`hello`", "expected a mapping"}},
		"two documents":          {"maxVolumes: 1\n---\nmaxVolumes: 2\n", []string{"line 2", "expected one YAML document"}},
		"empty second document":  {"maxVolumes: 1\n---\n", []string{"expected one YAML document"}},
		"no YAML":                {"maxVolumes: 1\ndevices: [\n", []string{"line 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Parse([]byte(test.text))
			if err == nil {
				t.Fatalf("got %+v, want an error", got)
			}
			for _, words := range test.says {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%q lacks %q", err, words)
				}
			}
			if strings.Contains(err.Error(), "config.Config") || strings.Contains(err.Error(), "config.Devices") || strings.Contains(err.Error(), "config.Pattern") {
				t.Errorf("%q speaks of Go types", err)
			}
			if !reflect.DeepEqual(got, config.Config{}) {
				t.Errorf("half of it was taken: %+v", got)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if _, err := config.Load(file); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), file) {
		t.Errorf("no file: %v; want %v with the path", err, fs.ErrNotExist)
	}
	for text, wantsError := range map[string]bool{"maxVolumes: 3": false, "maxVolumes: -3": true} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.Load(file)
		if (err != nil) != wantsError || err == nil && got.MaxVolumes != 3 || err != nil && !strings.Contains(err.Error(), file) {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
}

// A default that is handed out is not changed by whoever gets it.
func TestDefaultIsNotShared(t *testing.T) {
	patterns := config.Default().Devices.Patterns()
	if !reflect.DeepEqual(patterns, []string{"/dev/disk/by-id/*"}) {
		t.Errorf("by default %q are allowed", patterns)
	}
	config.Default().Devices.Allow[0] = "/*"
	if got := config.Default().Devices.Allow[0]; got != "/dev/disk/by-id/*" {
		t.Errorf("the default has become %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "maxVolumes: 1", "maxVolumes: -1", "devices: {allow: [/dev/sd?]}", "devices: {allow: ['/dev/[']}",
		"a: &a [*a]", "---\n---\n", "devices: {allow: [!!binary L2Rldi94]}", "<<: {maxVolumes: 5}", "\xff",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		parsed, err := config.Parse(text)
		if err != nil && !reflect.DeepEqual(parsed, config.Config{}) {
			t.Errorf("%+v beside the error %v", parsed, err)
		}
		if parsed.MaxVolumes < 0 {
			t.Errorf("maxVolumes is %d", parsed.MaxVolumes)
		}
		for _, pattern := range parsed.Devices.Patterns() {
			if _, err := path.Match(pattern, ""); err != nil || !filepath.IsAbs(pattern) || filepath.Clean(pattern) != pattern {
				t.Errorf("pattern %q was taken (%v)", pattern, err)
			}
		}
	})
}
