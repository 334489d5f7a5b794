package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// see injects the failure, and returns the section about it.
func (m failureMode) see(t *testing.T) string {
	t.Helper()
	s := &scene{ward: emptyWard(t), end: func() {}}
	t.Cleanup(func() { s.end() })
	user, inject := m.begin(t, s)
	command(t, "udevadm", "settle") // It looks at each new disk, and would see the failure too.
	before, beforeLog := s.metrics(t), len(s.said(t))
	inject()
	var calls []string
	staged := user != nil && user.lock != ""
	if user != nil && !staged {
		calls = append(calls, "the pod starts: "+code(user.start(rig.Context(t))))
	}
	var conditions []string
	wanted := regexp.MustCompile(" (" + m.reason + "): ")
	rig.Eventually(t, func() error {
		before := s.tidy(strings.Join(conditions, "\n"))
		if conditions = s.conditions(t, user); m.reason != "" && !slices.ContainsFunc(conditions, wanted.MatchString) {
			return fmt.Errorf("the health is %q, without %s", conditions, m.reason)
		}
		if s.tidy(strings.Join(conditions, "\n")) != before {
			return fmt.Errorf("the health, %q, changes still", conditions)
		}
		return nil
	})
	// The page of metrics and the screen look by themselves.
	_, screen, _ := s.ctl(t, "status")
	_, problems, _ := strings.Cut(screen, "PROBLEMS")
	_, problems, _ = strings.Cut(problems, "\n")
	changed := s.metricsSince(t, before)
	if staged {
		calls = append(calls, "the pod reads: "+s.reading(user.target))
		calls = append(calls, "NodePublishVolume again: "+code(user.Publish(rig.Context(t), user.target)))
	}
	if user != nil {
		calls = append(calls, "the pod is torn down: "+code(user.takeDown(rig.Context(t), t)))
	}
	log := s.said(t)[beforeLog:]
	s.end()
	return s.tidy(fmt.Sprintf("## %s\n\n%s\n\n%s%s%s%s%s", m.title, m.cause,
		block("Health calls", conditions), block("Metrics that changed", changed), block("The plugin's log", worthTelling(log)),
		block("`rawblockctl status`, PROBLEMS", strings.Split(strings.TrimSpace(problems), "\n")), block("What comes of it", calls)))
}

// reading says what comes of a read, which may wait for the failure's end.
func (s *scene) reading(path string) string {
	read := make(chan error, 1)
	go func() { read <- rig.ReadDirect(path) }()
	select {
	case err := <-read:
		if err != nil {
			return err.Error()
		}
		return "it works"
	case <-time.After(5 * time.Second):
		return "it waits"
	}
}

func code(err error) string {
	if err == nil {
		return "OK"
	}
	state := grpcstatus.Convert(err)
	return state.Code().String() + ": " + state.Message()
}

func block(title string, lines []string) string {
	if len(lines) == 0 {
		return title + ": nothing.\n\n"
	}
	return title + ":\n\n```text\n" + strings.Join(lines, "\n") + "\n```\n\n"
}

// conditions are what the health calls tell.
func (s *scene) conditions(t *testing.T, user *patient) (found []string) {
	t.Helper()
	if user != nil {
		response, err := s.csi.NodeGetVolumeHealth(rig.Context(t), &csi.NodeGetVolumeHealthRequest{VolumeId: user.ID})
		if err != nil {
			found = append(found, "volume: "+err.Error())
		}
		for _, one := range response.GetVolumeHealth().GetHealthStatuses() {
			found = append(found, fmt.Sprintf("volume: %s %s: %s", one.GetStatus(), one.GetReason(), one.GetMessage()))
		}
	}
	response, err := s.csi.NodeGetStorageHealth(rig.Context(t), &csi.NodeGetStorageHealthRequest{})
	rig.Must(t, err)
	for _, one := range response.GetBackendHealth() {
		found = append(found, fmt.Sprintf("node: %s %s: %s", one.GetStatus(), one.GetReason(), one.GetMessage()))
	}
	return found
}

// said is what the plugin's log has.
func (s *scene) said(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(s.log)
	rig.Must(t, err)
	return string(text)
}

// worthTelling are the warnings and errors of a log, each once, and how calls failed.
func worthTelling(log string) (lines []string) {
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "E") || strings.HasPrefix(line, "W") {
			_, line, _ = strings.Cut(line, "] ")
			lines = append(lines, line)
		}
	}
	return lines
}

// metrics are the values of the page that tell of failures, by their names.
func (s *scene) metrics(t *testing.T) map[string]string {
	t.Helper()
	response, err := http.Get("http://" + s.address + "/metrics") //nolint:noctx // It is the test's own.
	rig.Must(t, err)
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	rig.Must(t, err)
	values := map[string]string{}
	for line := range strings.Lines(string(page)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(name, "rawblock_csi_") && !unsteady.MatchString(name) {
			values[name] = value
		}
	}
	return values
}

// unsteady are metrics that change by themselves, or with each call.
var unsteady = regexp.MustCompile(`_seconds|_left_bytes|_operations_|_file_pool_bytes|pool="files"|part="metadata"`)

func (s *scene) metricsSince(t *testing.T, before map[string]string) (changed []string) {
	t.Helper()
	after := s.metrics(t)
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if was := cmp.Or(before[name], "0"); was != after[name] {
			changed = append(changed, fmt.Sprintf("%s %s", name, after[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, is := after[name]; !is {
			changed = append(changed, name+" has gone")
		}
	}
	return changed
}

// What differs from run to run, and what the page has for it.
var tidied = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`requestID="[^"]*" ?`), ""},
	{regexp.MustCompile(`duration="[^"]*" ?`), ""},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| UTC|[+-]\d\d:\d\d)?`), "TIME"},
	{regexp.MustCompile(`disk sequence number \d+`), "disk sequence number N"},
	{regexp.MustCompile(`since it was last checked \(\d+\)`), "since it was last checked (N)"},
	{regexp.MustCompile(`\bprocess \d+`), "process N"},
	{regexp.MustCompile(`(attachment="?|attachment )[a-z2-7]{8}\b`), "${1}ATTACHMENT"},
	{regexp.MustCompile(`at sector \d+`), "at sector N"},
	{regexp.MustCompile(`\d+ or more since`), "N or more since"},
	{regexp.MustCompile(`have failed: \d+ since`), "have failed: N since"},
	{regexp.MustCompile(`rawblock-test-[a-z0-9]+`), "NODE"},
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`LVM-[A-Za-z0-9]{64}`), "LVM-UUIDS"},
	{regexp.MustCompile(`\bnvme\d+n\d+`), "nvmeXnY"},
	{regexp.MustCompile(`\bsd[a-z]+\b`), "sdX"},
	{regexp.MustCompile(`\bsd[a-z]+(\d+)\b`), "sdX$1"},
	{regexp.MustCompile(`\bvd[a-z]+\b`), "vdX"},
	{regexp.MustCompile(`\b(loop|dm-)\d+`), "${1}N"},
	{regexp.MustCompile(`\b\d+:\d+\b`), "MAJ:MIN"},
}

// tidy makes a text the same on each node.
func (s *scene) tidy(text string) string {
	for path, name := range map[string]string{filepath.Dir(s.files): "/var/lib/pool", s.kubeletDir: "/var/lib/kubelet", s.stateDir: "/run/rawblock-csi"} {
		text = strings.ReplaceAll(text, path, name)
	}
	for _, one := range tidied {
		text = one.what.ReplaceAllString(text, one.with)
	}
	return text
}
