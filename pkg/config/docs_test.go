package config_test

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

const page = "../../docs/reference/configuration.md"

// row is what a table of the page says of one key.
type row struct{ line, path, initial, taken, refused string }

func readPage(t *testing.T) (text string, rows []row) {
	t.Helper()
	content, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text = string(content)
	for line := range strings.Lines(text) {
		if cells := strings.Split(line, " | "); len(cells) == 6 && strings.HasPrefix(cells[0], "| `") {
			rows = append(rows, row{line, strings.Trim(cells[0], "|` "), cells[2], cells[4], cells[5]})
		}
	}
	return text, rows
}

var code = regexp.MustCompile("`([^`]+)`")

// values returns the values in a cell.
func values(cell string) []string {
	var values []string
	for _, found := range code.FindAllStringSubmatch(cell, -1) {
		values = append(values, found[1])
	}
	return values
}

// The page has the keys that the parser knows, which it lists where it meets one
// that it does not.
func TestPageHasEveryKey(t *testing.T) {
	_, rows := readPage(t)
	documented := map[string]bool{}
	for _, row := range rows {
		if documented[row.path] {
			t.Errorf("%s stands twice on the page", row.path)
		}
		documented[row.path] = true
	}
	known := map[string]bool{}
	findKeys("", "%s", known)
	for path := range maps.Clone(known) {
		// The page says that an entry of exclude has the keys of match.
		if rest, ok := strings.CutPrefix(path, "pools[].disk.exclude[]."); ok {
			delete(known, path)
			if !known["pools[].disk.match."+rest] {
				t.Errorf("match lacks %s", rest)
			}
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(documented))); diff != "" {
		t.Errorf("the parser knows (-), the page has (+):\n%s", diff)
	}
}

var listsKeys = regexp.MustCompile(`"\?" is unknown in [^;]*; its keys are: ([^;]*)`)

// findKeys finds the keys of the mapping that stands in a text in place of %s,
// and of those below it.
func findKeys(path, text string, known map[string]bool) {
	_, err := config.Parse(fmt.Appendf(nil, text, "{'?': 1}"))
	if err == nil {
		return
	}
	found := listsKeys.FindStringSubmatch(err.Error())
	if found == nil {
		return
	}
	for key := range strings.SplitSeq(found[1], ", ") {
		known[path+key] = true
		findKeys(path+key+".", fmt.Sprintf(text, "{"+key+": %s}"), known)
		findKeys(path+key+"[].", fmt.Sprintf(text, "{"+key+": [%s]}"), known)
	}
}

// places are the mappings of the file: what stands around each, and what it must
// have besides the key that is looked at.
var places = map[string]struct {
	around string
	needs  map[string]string
}{
	"":                    {"%s", nil},
	"devices.":            {"{devices: %s}", nil},
	"hotplug.":            {"{hotplug: %s}", nil},
	"encryption.":         {"{encryption: %s}", nil},
	"pools[].":            {"{pools: [%s]}", map[string]string{"name": "a", "file": "{directory: /a}"}},
	"pools[].file.":       {"{pools: [{name: a, file: %s}]}", map[string]string{"directory": "/a"}},
	"pools[].disk.":       {"{pools: [{name: a, disk: %s}]}", map[string]string{"match": "{transport: nvme}"}},
	"pools[].disk.match.": {"{pools: [{name: a, disk: {match: %s}}]}", nil},
	"pools[].lvm.":        {"{pools: [{name: a, lvm: %s}]}", map[string]string{"volumeGroup": "vg0", "thinPool": "tp0"}},
}

// with returns a file with a value at a path; "" leaves the key out.
func with(path, value string) []byte {
	cut := strings.LastIndex(path, ".") + 1
	place, key := places[path[:cut]], path[cut:]
	pairs := maps.Clone(place.needs)
	if pairs == nil {
		pairs = map[string]string{}
	}
	switch path {
	case "pools[].disk", "pools[].lvm":
		delete(pairs, "file")
	case "pools[].lvm.wipe":
		delete(pairs, "thinPool")
	}
	pairs[key] = value
	if value == "" {
		delete(pairs, key)
	}
	var mapping []string
	for key, value := range pairs {
		mapping = append(mapping, key+": "+value)
	}
	return fmt.Appendf(nil, place.around, "{"+strings.Join(mapping, ", ")+"}")
}

func TestPageTellsTheTruth(t *testing.T) {
	_, rows := readPage(t)
	for _, row := range rows {
		if len(values(row.taken)) == 0 || len(values(row.refused)) == 0 {
			t.Errorf("%s has no example of what is taken, or refused", row.path)
		}
		for _, value := range values(row.taken) {
			if _, err := config.Parse(with(row.path, value)); err != nil {
				t.Errorf("%s: %s is refused: %v", row.path, value, err)
			}
		}
		for _, value := range values(row.refused) {
			if got, err := config.Parse(with(row.path, value)); err == nil {
				t.Errorf("%s: %s is taken: %+v", row.path, value, got)
			}
		}
		for _, value := range values(row.initial) {
			checkInitial(t, row.path, value)
		}
	}
}

// checkInitial sees that a default that is written out changes nothing.
func checkInitial(t *testing.T, path, value string) {
	t.Helper()
	without, err := config.Parse(with(path, ""))
	if err != nil {
		t.Fatalf("%s is not optional: %v", path, err)
	}
	written, err := config.Parse(with(path, value))
	if err != nil {
		t.Fatalf("%s: the default %s is refused: %v", path, value, err)
	}
	if diff := cmp.Diff(without, written, ignoreLines); diff != "" {
		t.Errorf("%s: %s is not the default:\n%s", path, value, diff)
	}
}

func TestPageTellsWhatIsRequired(t *testing.T) {
	_, rows := readPage(t)
	for _, row := range rows {
		if strings.HasPrefix(row.path, "pools[].disk.match.") {
			continue // A match needs one of its keys, whichever.
		}
		isRequired := row.initial == "required" || row.initial == "one of the three"
		if _, err := config.Parse(with(row.path, "")); (err != nil) != isRequired {
			t.Errorf("%s is said to be %q; without it: %v", row.path, row.initial, err)
		}
	}
}

// Where a key has one of some words, its row has all of them.
func TestPageHasEveryWord(t *testing.T) {
	_, rows := readPage(t)
	lists := 0
	for _, row := range rows {
		_, err := config.Parse(with(row.path, "'?'"))
		if err == nil {
			continue
		}
		_, words, isList := strings.Cut(err.Error(), "expected one of: ")
		if !isList {
			continue
		}
		lists++
		for word := range strings.SplitSeq(words, ", ") {
			if !slices.Contains(values(row.line), word) {
				t.Errorf("the row of %s lacks %s", row.path, word)
			}
		}
	}
	if lists != 4 {
		t.Errorf("%d keys have one of some words; want transport, layout, and wipe twice", lists)
	}
}

// The first example says the defaults, and the error that is shown is the one
// that is had.
func TestPageExamples(t *testing.T) {
	text, _ := readPage(t)
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(examples) != 2 {
		t.Fatalf("the page has %d examples", len(examples))
	}
	for i, example := range examples {
		got, err := config.Parse([]byte(example[1]))
		if err != nil {
			t.Errorf("%v\n%s", err, example[1])
		}
		if diff := cmp.Diff(config.Default(), got, ignoreLines); i == 0 && diff != "" {
			t.Error(diff)
		}
	}
	_, err := config.Parse([]byte(strings.Replace(examples[1][1], "500Gi", "500GB", 1)))
	if want := "configuration /etc/rawblock-csi/config.yaml: " + fmt.Sprint(err) + "\n"; !strings.Contains(text, want) {
		t.Errorf("the page lacks %s", want)
	}
}
