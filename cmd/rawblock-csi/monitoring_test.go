package main

import (
	"cmp"
	"encoding/json"
	"flag"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const (
	metricsPage = "../../docs/reference/metrics.md"
	logsPage    = "../../docs/reference/logs.md"
	// samplePage is what alerts and dashboard are tested against.
	samplePage = "../../deploy/monitoring/testdata/metrics.txt"
)

var update = flag.Bool("update", false, "write the sample of the metrics page anew")

// observe runs the plugin with a pool of each kind, has a volume made and used and one
// fail, and returns its metrics page and its log. The volume group is not there: this
// machine may have no LVM.
func observe(t *testing.T) (page, log string) {
	t.Helper()
	kubeletDir, stateDir, disk := rig.KubeletDir(t), rig.StateDir(t), rig.NewDisk(t, 48*rig.MiB)
	config, socket, address := filepath.Join(t.TempDir(), "config.yaml"), kubeletDir+"/csi.sock", freeAddress(t)
	rig.Must(t, os.WriteFile(config, []byte(`pools:
- {name: files, file: {directory: `+t.TempDir()+`, capacity: 4Mi}}
- {name: disks, disk: {match: {paths: [`+disk.Path+`]}}}
- {name: group, lvm: {volumeGroup: rawblock-missing, thinPool: tp0}}
devices: {allow: [/dev/loop*]}
`), 0o600))
	command, _, stderr := newProgram(t, "--endpoint=unix://"+socket, "--node-id=node-1", "--kubelet-dir="+kubeletDir,
		"--state-dir="+stateDir, "--config="+config, "--v=5", "--logging-format=json", "--metrics-address="+address)
	rig.Must(t, command.Start())
	plugin, ctx := rig.Connect(t, socket, kubeletDir), rig.Context(t)
	template := plugin.Provisioned(t, "template")
	created, err := plugin.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: "pvc-1", VolumeCapabilities: []*csi.VolumeCapability{template.Capability()}, Parameters: map[string]string{driver.PoolParameter: "files"}, CapacityRange: &csi.CapacityRange{RequiredBytes: rig.MiB},
	})
	rig.Must(t, err)
	volume := plugin.Provisioned(t, created.GetVolume().GetVolumeId())
	volume.Context = map[string]string{"csi.storage.k8s.io/pod.name": "web-0", "csi.storage.k8s.io/pod.namespace": "shop", "csi.storage.k8s.io/pod.uid": "uid-1"}
	rig.Must(t, volume.Stage(ctx))
	target := volume.Target(t, "pod-1")
	rig.Must(t, volume.Publish(ctx, target))
	for range 3 {
		if plugin.NewVolume(t, "other", "/dev/null").Stage(ctx) == nil {
			t.Error("a device that the configuration does not allow is staged")
		}
	}
	page = get(t, "http://"+address+"/metrics")
	rig.Must(t, volume.Unpublish(ctx, target))
	rig.Must(t, volume.Unstage(ctx))
	_, err = plugin.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: "files/none@node-1"})
	rig.Must(t, err)
	_, err = plugin.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume.ID})
	rig.Must(t, err)
	rig.Must(t, command.Process.Signal(syscall.SIGTERM))
	rig.Must(t, command.Wait())
	return page, stderr.String()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	rig.Must(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

func get(t *testing.T, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(rig.Context(t), http.MethodGet, url, nil)
	rig.Must(t, err)
	response, err := http.DefaultClient.Do(request)
	rig.Must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", url, response.Status, err, body)
	}
	return string(body)
}

// What a node's plugin serves and logs: by the conventions, and as the reference says.
func TestMonitoring(t *testing.T) {
	page, log := observe(t)
	t.Run("conventions", func(t *testing.T) {
		problems, err := promlint.New(strings.NewReader(page)).Lint()
		rig.Must(t, err)
		for _, problem := range problems {
			t.Errorf("%s: %s", problem.Metric, problem.Text)
		}
	})
	t.Run("metrics of the reference", func(t *testing.T) { compareMetrics(t, page) })
	t.Run("sample", func(t *testing.T) { compareSample(t, page) })
	t.Run("keys of the reference", func(t *testing.T) { compareKeys(t, log) })
	t.Run("lines of a call", func(t *testing.T) { wantLinesOfCalls(t, log) })
}

// metricsOf returns the names on a metrics page, each with the names of its labels.
func metricsOf(page string) map[string][]string {
	found := map[string][]string{}
	for _, series := range regexp.MustCompile(`(?m)^([a-z_]+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? \S+$`).FindAllStringSubmatch(page, -1) {
		var labels []string
		for _, label := range regexp.MustCompile(`([a-z_]+)="(?:[^"\\]|\\.)*"`).FindAllStringSubmatch(series[2], -1) {
			labels = append(labels, label[1])
		}
		labels = slices.DeleteFunc(append(labels, found[series[1]]...), func(label string) bool { return label == "le" })
		slices.Sort(labels)
		found[series[1]] = slices.Compact(labels)
	}
	return found
}

// documentedMetrics returns those of the reference. The rare are those whose rows say that
// they are there only while something is so.
func documentedMetrics(t *testing.T) (all map[string][]string, rare []string) {
	t.Helper()
	text, err := os.ReadFile(metricsPage)
	rig.Must(t, err)
	all = map[string][]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)(?:\\{([^}]*)\\})?` \\|(.*)$").FindAllStringSubmatch(string(text), -1) {
		var labels []string
		if row[2] != "" {
			labels = strings.Split(row[2], ", ")
		}
		slices.Sort(labels)
		all[row[1]] = labels
		if strings.Contains(row[3], "Only while") {
			rare = append(rare, row[1])
		}
	}
	return all, rare
}

// compareMetrics compares the page with the rows of the reference.
func compareMetrics(t *testing.T, page string) {
	t.Helper()
	documented, rare := documentedMetrics(t)
	served := metricsOf(page)
	for _, name := range rare {
		if _, found := served[name]; !found {
			delete(documented, name)
		}
	}
	if diff := gocmp.Diff(documented, served); diff != "" {
		t.Errorf("in the reference, not on the page (-), and the other way round (+):\n%s", diff)
	}
}

// compareSample has the sample be as the page is: the same metrics and labels.
func compareSample(t *testing.T, page string) {
	t.Helper()
	if *update {
		rig.Must(t, os.WriteFile(samplePage, []byte(page), 0o644)) //nolint:gosec // For all to read.
	}
	text, err := os.ReadFile(samplePage)
	rig.Must(t, err)
	sample, served := metricsOf(string(text)), metricsOf(page)
	_, rare := documentedMetrics(t)
	for _, name := range rare {
		delete(sample, name)
		delete(served, name)
	}
	if diff := gocmp.Diff(sample, served); diff != "" {
		t.Errorf("in the sample, not on the page (-), and the other way round (+); run the test with -update:\n%s", diff)
	}
}

// entries are the lines of a log in JSON.
func entries(t *testing.T, log string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(log) {
		entry := map[string]any{}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q is not JSON: %v", line, err)
		}
		found = append(found, entry)
	}
	return found
}

// compareKeys finds no key in the log, and none in the source, that the reference lacks,
// and none there that nobody writes.
func compareKeys(t *testing.T, log string) {
	t.Helper()
	text, err := os.ReadFile(logsPage)
	rig.Must(t, err)
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Za-z]+)` \\|").FindAllSubmatch(text, -1) {
		documented[string(row[1])] = true
	}
	written := keysOfSource(t)
	for _, entry := range entries(t, log) {
		for key := range entry {
			written[key] = true
		}
	}
	if diff := gocmp.Diff(documented, written); diff != "" {
		t.Errorf("in the reference, not written (-), and the other way round (+):\n%s", diff)
	}
}

// wantLinesOfCalls looks at what a call is told with.
func wantLinesOfCalls(t *testing.T, log string) {
	t.Helper()
	messages, calls := map[string][]string{}, map[string]map[string]any{}
	for _, entry := range entries(t, log) {
		id, ok := entry["requestID"].(string)
		if !ok {
			continue
		}
		messages[id] = append(messages[id], entry["msg"].(string))
		if _, ended := entry["code"]; ended {
			calls[id] = entry
		}
	}
	again := 0
	for id, lines := range messages {
		if lines[0] != "Call" || calls[id] == nil {
			t.Errorf("request %s has the lines %q", id, lines)
		}
		if slices.Contains(lines, "Call failed again") {
			again++
		}
	}
	if again != 2 {
		t.Errorf("of three equal failures, %d are told as repeats, want 2", again)
	}
	ids := slices.SortedFunc(maps.Keys(calls), func(a, b string) int { return cmp.Compare(calls[a]["time"].(string), calls[b]["time"].(string)) })
	for _, id := range ids {
		if call := calls[id]; call["method"] == "NodePublishVolume" {
			delete(call, "time")
			if duration, ok := call["duration"].(float64); !ok || duration <= 0 {
				t.Errorf("the duration is %v", call["duration"])
			}
			delete(call, "duration")
			want := map[string]any{
				"level": "INFO", "msg": "Call done", "requestID": id, "method": "NodePublishVolume",
				"volume": "files/pvc-1@node-1", "pod": "shop/web-0", "podUID": "uid-1", "code": "OK",
			}
			if diff := gocmp.Diff(want, call); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
			return
		}
	}
	t.Errorf("no line tells of the publish:\n%s", log)
}
