package health

import (
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// tree is a fake of sysfs, for hardware and faults that cannot be had: files and
// their content; one that begins with "-> " is a link.
type tree map[string]string

// device returns what each block device has, in its directory below devices.
func device(number, dir string, more tree) tree {
	files := tree{
		"devices/" + dir + "/dev":     number + "\n",
		"devices/" + dir + "/diskseq": "9\n",
		"devices/" + dir + "/size":    "2048\n",
		"devices/" + dir + "/ro":      "0\n",
		"devices/" + dir + "/stat":    stat(100, 0),
		"dev/block/" + number:         "-> ../../devices/" + dir,
	}
	for name, content := range more {
		files["devices/"+dir+"/"+name] = content
	}
	return files
}

// stat is the file stat of a device of which so many reads have ended.
func stat(ended, inFlight int) string {
	return strings.NewReplacer("E", strconv.Itoa(ended), "F", strconv.Itoa(inFlight)).Replace("   E  0 0 0  0 0 0 0   F 0 0  0 0 0 0  0 0\n")
}

func (files tree) and(more tree) tree {
	all := maps.Clone(files)
	maps.Copy(all, more)
	return all
}

// world is a monitor, its tree and its clock.
type world struct {
	*Monitor
	root string
	time time.Time
	// log is the SMART log of each NVMe controller.
	log []byte
}

func newWorld(t *testing.T, files tree) *world {
	t.Helper()
	w := &world{root: t.TempDir(), time: time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC), log: make([]byte, smartLength)}
	w.Monitor = New(blockdev.NewSysfs(w.root))
	w.now = func() time.Time { return w.time }
	w.smart = func(string) ([]byte, error) { return w.log, nil }
	w.set(t, files)
	return w
}

// set changes files.
func (w *world) set(t *testing.T, files tree) {
	t.Helper()
	for path, content := range files {
		path = filepath.Join(w.root, path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		if target, isLink := strings.CutPrefix(content, "-> "); isLink {
			must(t, os.Symlink(target, path))
			continue
		}
		must(t, os.WriteFile(path, []byte(content), 0o600))
	}
}

func (w *world) look(t *testing.T, device Device) []volume.Condition {
	t.Helper()
	found, err := w.Devices(t.Context(), device)
	must(t, err)
	return found
}

// want looks at a device and compares what is found with severities and reasons; the
// messages must have all the words.
func (w *world) want(t *testing.T, number string, want map[volume.Reason]volume.Severity, words ...string) {
	t.Helper()
	parsed, err := linux.ParseDeviceNumber(number)
	must(t, err)
	found := w.look(t, Device{Number: parsed, DiskSeq: 9, IsKnown: true, Writable: true})
	got, text := map[volume.Reason]volume.Severity{}, ""
	for _, condition := range found {
		got[condition.Reason] = condition.Severity
		text += condition.Message + "\n"
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v:\n%s", got, want, text)
	}
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("no message has %q:\n%s", word, text)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
