package config_test

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

func TestParse(t *testing.T) {
	byID := config.Default().Devices
	files := config.Default().Pools
	for name, test := range map[string]struct {
		text string
		want config.Config
	}{
		"empty file":         {"", config.Config{Pools: files, Devices: byID}},
		"comments only":      {"# nothing\n", config.Config{Pools: files, Devices: byID}},
		"empty document":     {"---\n", config.Config{Pools: files, Devices: byID}},
		"one key":            {"maxVolumes: 20\n", config.Config{MaxVolumes: 20, Pools: files, Devices: byID}},
		"largest number":     {"maxVolumes: 9223372036854775807\n", config.Config{MaxVolumes: math.MaxInt64, Pools: files, Devices: byID}},
		"unlimited":          {"maxVolumes: 0\n", config.Config{Pools: files, Devices: byID}},
		"nothing is allowed": {"devices: {allow: []}\n", config.Config{Pools: files, Devices: config.Devices{Allow: []config.Pattern{}}}},
		"devices without allow": {
			"devices: {}\n", config.Config{Pools: files, Devices: byID},
		},
		"patterns replace the default": {
			"devices:\n  allow:\n  - /dev/disk/by-path/*\n  - /dev/disk/by-id/wwn-0x5*\n",
			config.Config{Pools: files, Devices: config.Devices{Allow: []config.Pattern{"/dev/disk/by-path/*", "/dev/disk/by-id/wwn-0x5*"}}},
		},
		"growth by the controller": {"controllerExpansion: true\n", config.Config{ControllerExpansion: true, Pools: files, Devices: byID}},
		"no pool":                  {"pools: []\n", config.Config{Pools: []config.Pool{}, Devices: byID}},
		"a mark in front":          {"\uFEFFmaxVolumes: 20\n", config.Config{MaxVolumes: 20, Pools: files, Devices: byID}},
		"alias": {
			"maxVolumes: &n 7\ndevices: {allow: [&p /dev/sdb, *p]}\n",
			config.Config{MaxVolumes: 7, Pools: files, Devices: config.Devices{Allow: []config.Pattern{"/dev/sdb", "/dev/sdb"}}},
		},
		"hot attach": {
			"hotplug: {criSocket: /run/crio/crio.sock, attachmentPods: true}\n",
			config.Config{Pools: files, Devices: byID, Hotplug: config.Hotplug{CRISocket: "/run/crio/crio.sock", AttachmentPods: true}},
		},
		"JSON": {`{"maxVolumes": 5, "devices": {"allow": ["/dev/sdb"]}}`, config.Config{MaxVolumes: 5, Pools: files, Devices: config.Devices{Allow: []config.Pattern{"/dev/sdb"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Parse([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
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
		"unknown key":            {"maxVolumes: 1\nmaxvolumes: 2\n", []string{"line 2", `"maxvolumes" is unknown`, "its keys are: maxVolumes, controllerExpansion, pools, devices, hotplug"}},
		"unknown key of devices": {"devices:\n  deny: []\n", []string{"line 2", `"deny" is unknown in devices`, "its keys are: allow"}},
		"two unknown keys":       {"a: 1\nb: 2\n", []string{`line 1: "a"`, `; line 2: "b"`}},
		"merged keys":            {"<<: {maxVolumes: 5}\n", []string{"line 1", `"<<" is unknown`}},
		"number as key":          {"maxVolumes: 1\n5: 1\n", []string{"line 2", `"5" is unknown`}},
		"list as key":            {"[a]: 1\n", []string{"line 1", "a list is unknown"}},
		"key twice":              {"maxVolumes: 1\nmaxVolumes: 2\n", []string{`line 2: "maxVolumes" stands in line 1 already`}},
		"key twice, in JSON":     {"{\"maxVolumes\": 1,\n maxVolumes: 2}\n", []string{`line 2: "maxVolumes" stands in line 1 already`}},
		"key twice, deeper":      {"devices:\n  allow: []\n  allow: [/a]\n", []string{`line 3: "allow" stands in line 2 already`}},
		"no count":               {"\nmaxVolumes:\ndevices: {}\n", []string{`line 2: "maxVolumes" has no value`}},
		"no pools":               {"pools:\n# - name: files\n", []string{`line 1: "pools" has no value`}},
		"no pattern":             {"devices:\n  allow:\n  -\n  - /a\n", []string{"line 3: the list has an entry without a value"}},
		"null as pattern":        {"devices:\n  allow: [/a,\n    ~]\n", []string{"line 3: the list has an entry without a value"}},
		"alias of nothing":       {"maxVolumes: &a\ndevices: {allow: [*a]}\n", []string{`line 1: "maxVolumes" has no value; give it one or remove it; line 1: the list has an entry without a value`}},
		"anchor in itself":       {"devices: {allow: &a [*a]}\n", []string{"line 1: a list is not a path pattern", pattern}},
		"negative count":         {"\nmaxVolumes: -1\n", []string{"line 2", `"-1" is not a count`, count}},
		"octal count":            {"maxVolumes: 010\n", []string{"line 1", `"010" is not a count`, count}},
		"hexadecimal count":      {"maxVolumes: 0x10\n", []string{"line 1", `"0x10" is not a count`, count}},
		"count in words":         {"maxVolumes: many\n", []string{"line 1", `"many" is not a count`, count}},
		"count in quotes":        {"maxVolumes: '5'\n", []string{"line 1", `"5" is not a count`, count}},
		"count too large":        {"maxVolumes: 9223372036854775808\n", []string{"line 1", "is not a count", count}},
		"fraction as count":      {"maxVolumes: 1.5\n", []string{"line 1", `"1.5" is not a count`, count}},
		"list as count":          {"maxVolumes: [1]\n", []string{"line 1", "a list is not a count", count}},
		"yes as truth":           {"controllerExpansion: yes\n", []string{"line 1", `"yes" is not a truth value`, "expected true or false"}},
		"quoted truth":           {"controllerExpansion: 'true'\n", []string{"line 1", `"true" is not a truth value`, "without quotes"}},
		"malformed after a star": {"devices:\n  allow: ['/dev/*[']\n", []string{"line 2", `"/dev/*[" is not a path pattern`, pattern}},
		"list as devices":        {"devices:\n- /dev/sdb\n", []string{"line 2", "a list stands for devices; expected a mapping with the keys: allow"}},
		"text as patterns":       {"devices:\n  allow: /dev/sdb\n", []string{"line 2", `"/dev/sdb" is not a list`, "expected entries in []"}},
		"mapping as list":        {"pools: {name: a}\n", []string{"line 1", "a mapping is not a list"}},
		"relative pattern":       {"devices:\n  allow:\n  - /dev/sdb\n  - dev/sdc\n", []string{"line 4", `"dev/sdc" is not a path pattern`, pattern}},
		"empty pattern":          {"devices:\n  allow: ['']\n", []string{"line 2", `"" is not a path pattern`, pattern}},
		"pattern that climbs":    {"devices:\n  allow: [/dev/disk/../../etc/*]\n", []string{"line 2", "is not a path pattern", pattern}},
		"pattern with a slash":   {"devices:\n  allow: [/dev/disk/by-id/]\n", []string{"line 2", "is not a path pattern", pattern}},
		"pattern with a NUL":     {"devices:\n  allow: [\"/dev/\\0\"]\n", []string{"line 2", `"/dev/\x00" is not a path pattern`, pattern}},
		"malformed pattern":      {"devices:\n  allow: ['/dev/[a']\n", []string{"line 2", `"/dev/[a" is not a path pattern`, pattern}},
		"number as pattern":      {"devices:\n  allow: [5]\n", []string{"line 2", `"5" is not a path pattern`, pattern}},
		"mapping as pattern":     {"devices:\n  allow: [{a: b}]\n", []string{"line 2", "a mapping is not a path pattern", pattern}},
		"list as file":           {"\n- maxVolumes\n", []string{"line 2", "a list stands for the configuration; expected a mapping"}},
		"text as file":           {"hello\n", []string{"line 1", `"hello" stands for the configuration; expected a mapping`}},
		"two documents":          {"maxVolumes: 1\n---\nmaxVolumes: 2\n", []string{"line 2", "expected one YAML document"}},
		"empty second document":  {"maxVolumes: 1\n---\n", []string{"line 2", "expected one YAML document"}},
		"broken second document": {"maxVolumes: 1\n---\na: [\n", []string{"no YAML at or next to line 3"}},
		"no YAML":                {"maxVolumes: 1\ndevices: [\n", []string{"no YAML at or next to line 2"}},
		"no YAML in one line":    {"a: b: c", []string{"no YAML at or next to line 1: mapping values are not allowed"}},
		"tab as indentation":     {"devices:\n\tallow: []\n", []string{"no YAML at or next to line 2"}},
		"unknown alias":          {"maxVolumes: *n\n", []string{"line 1: unknown anchor"}},
		"no text":                {"# one\n# \xff\n", []string{"line 2: not text; expected YAML in UTF-8"}},
		"control character":      {"maxVolumes: 1\n\n# \x00\n", []string{"line 3: not text"}},
		"binary as pattern":      {"devices: {allow: [!!binary L2Rldi94]}\n", []string{"line 1", "is not a path pattern"}},
		"a mark in the middle":   {"# one\n# \uFEFF\n", []string{"line 2: not text"}},
		"a key with a tag":       {"!!binary maxVolumes: 1\n", []string{`line 1: !!binary "maxVolumes" is unknown`}},
		"text tagged as mapping": {"devices: !!map allow\n", []string{`line 1: !!map "allow" stands for devices`}},
		"text tagged as list":    {"pools: !!seq a\n", []string{`line 1: !!seq "a" is not a list`}},
		"a tag for a list":       {"pools: !own []\n", []string{"line 1: !own a list is not a list"}},
		"a tag of one's own":     {"!config {maxVolumes: 1}\n", []string{"line 1: !config a mapping stands for the configuration"}},
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
			if strings.Contains(err.Error(), "config.") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q speaks of Go types, or is not one line of a log", err)
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
	for text, wantsError := range map[string]bool{"maxVolumes: 3": false, "maxVolumes: -3": true, "---\n---\n": true} {
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
	if len(patterns) != 8 || patterns[0] != "/dev/disk/by-id/ata-*" {
		t.Errorf("by default %q are allowed", patterns)
	}
	given := config.Default()
	given.Devices.Allow[0], given.Pools[0].Name, given.Pools[0].File.Directory = "/*", "mine", "/"
	if diff := cmp.Diff(config.Default(), given); diff == "" {
		t.Error("the default has become what somebody wrote")
	}
}
