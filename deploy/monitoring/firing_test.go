package monitoring_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
)

func parseFloat(text string) (float64, error) { return strconv.ParseFloat(text, 64) }

// step is how often the page is read, and span for how long.
const (
	step = 30 * time.Second
	span = 2 * time.Hour
)

// fault is what becomes of a series of the page.
type fault struct {
	metric string
	labels map[string]string
	// value is what it is; growth is by how much it grows each step.
	value, growth float64
}

// mended is what the page of a plugin in order has otherwise than the real one: that was of
// a node without its volume group, with a new disk that was still being wiped.
var mended = []fault{
	{metric: "rawblock_csi_pool_up", labels: map[string]string{"pool": "group"}, value: 1},
	{metric: "rawblock_csi_lvm_pool_usable", value: 1},
	{metric: "rawblock_csi_health_storage", labels: map[string]string{"reason": "DiskRefused"}},
	{metric: "rawblock_csi_pool_bytes", labels: map[string]string{"pool": "disks", "kind": "available"}, value: 1 << 20},
}

const stage, publish = "/csi.v1.Node/NodeStageVolume", "/csi.v1.Node/NodePublishVolume"

// faults are what each alert must be raised for.
var faults = map[string][]fault{
	"RawblockPluginDown":         {{metric: "up"}},
	"RawblockWrongDisk":          {{metric: "rawblock_csi_publish_errors_total", labels: map[string]string{"method_name": stage, "reason": "mismatch"}, growth: 1}},
	"RawblockPublishFailing":     {{metric: "rawblock_csi_publish_errors_total", labels: map[string]string{"method_name": publish, "reason": "in_use"}, growth: .25}},
	"RawblockInternalErrors":     {{metric: "csi_plugin_operations_seconds_count", labels: map[string]string{"method_name": publish, "grpc_status_code": "Internal"}, growth: .25}},
	"RawblockCallsSlow":          {{metric: "csi_plugin_operations_seconds_bucket", labels: map[string]string{"method_name": publish, "grpc_status_code": "OK", "le": "60"}, growth: 1}, {metric: "csi_plugin_operations_seconds_bucket", labels: map[string]string{"method_name": publish, "grpc_status_code": "OK", "le": "120"}, growth: 1}, {metric: "csi_plugin_operations_seconds_bucket", labels: map[string]string{"method_name": publish, "grpc_status_code": "OK", "le": "+Inf"}, growth: 1}},
	"RawblockVolumeDataLoss":     {{metric: "rawblock_csi_health_volumes", labels: map[string]string{"reason": "BackingDeleted"}, value: 1}},
	"RawblockVolumeUnhealthy":    {{metric: "rawblock_csi_health_volumes", labels: map[string]string{"reason": "IOErrors"}, value: 2}},
	"RawblockStorageUnhealthy":   {{metric: "rawblock_csi_health_storage", labels: map[string]string{"reason": "WipeFailing"}, value: 1}},
	"RawblockPoolDown":           {{metric: "rawblock_csi_pool_up", labels: map[string]string{"pool": "files"}}},
	"RawblockPoolVolumesMissing": {{metric: "rawblock_csi_pool_volumes", labels: map[string]string{"pool": "disks", "state": "missing"}, value: 1}},
	"RawblockPoolFull":           {{metric: "rawblock_csi_pool_bytes", labels: map[string]string{"pool": "files", "kind": "available"}}},
	"RawblockThinPoolFilling":    {{metric: "rawblock_csi_lvm_pool_thin_used_ratio", labels: map[string]string{"part": "data"}, value: .9}},
	"RawblockThinPoolFull":       {{metric: "rawblock_csi_lvm_pool_thin_used_ratio", labels: map[string]string{"part": "metadata"}, value: .97}},
	"RawblockLVMPoolUnusable":    {{metric: "rawblock_csi_lvm_pool_usable"}},
	"RawblockWipeFailing":        {{metric: "rawblock_csi_lvm_pool_wiping_failed", value: 1}},
	"RawblockDiskRefused":        {{metric: "rawblock_csi_disk_pool_disks", labels: map[string]string{"pool": "disks", "state": "failed"}, value: 1}},
	"RawblockAttachmentLost":     {{metric: "rawblock_csi_hotplug_attachments", labels: map[string]string{"state": "Lost"}, value: 1}},
	"RawblockAttachmentHeld":     {{metric: "rawblock_csi_hotplug_attachments", labels: map[string]string{"state": "Held"}, value: 1}},
}

// also are the alerts that are raised for a fault beside its own.
var also = map[string][]string{"RawblockThinPoolFull": {"RawblockThinPoolFilling"}}

func (f fault) matches(metric labels.Labels) bool {
	if metric.Get(model.MetricNameLabel) != f.metric {
		return false
	}
	for name, value := range f.labels {
		if metric.Get(name) != value {
			return false
		}
	}
	return true
}

// history has Prometheus remember a page with faults. A fault of a series that the page
// lacks adds it, as the plugin does with the first of its kind.
func history(t *testing.T, page []series, faults []fault) storage.Queryable {
	t.Helper()
	lines := map[string]string{}
	write := func(metric labels.Labels, value, growth float64) {
		lines[metric.String()] = fmt.Sprintf("%s %g+%gx%d", metric, value, growth, span/step)
	}
	for _, one := range page {
		write(one.labels, one.value, 0)
	}
	for _, fault := range faults {
		found := false
		for _, one := range page {
			if fault.matches(one.labels) {
				write(one.labels, fault.value, fault.growth)
				found = true
			}
		}
		if !found {
			write(labels.NewBuilder(target(labels.FromMap(fault.labels))).Set(model.MetricNameLabel, fault.metric).Labels(), fault.value, fault.growth)
		}
	}
	return promqltest.LoadedStorage(t, "load "+model.Duration(step).String()+"\n  "+strings.Join(slices.Sorted(maps.Values(lines)), "\n  ")+"\n")
}

// fires reports whether the rule holds for one and the same series for as long as it asks.
func fires(t *testing.T, engine *promql.Engine, memory storage.Queryable, rule rulefmt.Rule) bool {
	t.Helper()
	var lasting map[string]bool
	end := time.Unix(0, 0).Add(span)
	for at := end.Add(-time.Duration(rule.For)); !at.After(end); at = at.Add(step) {
		query, err := engine.NewInstantQuery(t.Context(), memory, nil, rule.Expr, at)
		if err != nil {
			t.Fatal(err)
		}
		vector, err := query.Exec(t.Context()).Vector()
		if err != nil {
			t.Fatal(err)
		}
		now := map[string]bool{}
		for _, sample := range vector {
			if key := sample.Metric.String(); lasting == nil || lasting[key] {
				now[key] = true
			}
		}
		query.Close()
		lasting = now
	}
	return len(lasting) > 0
}

func firing(t *testing.T, page []series, faults []fault) []string {
	t.Helper()
	engine := promqltest.NewTestEngineWithOpts(t, promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: parser.NewParser(parser.Options{})})
	memory := history(t, page, faults)
	var raised []string
	for _, rule := range readRules(t) {
		if fires(t, engine, memory, rule) {
			raised = append(raised, rule.Alert)
		}
	}
	slices.Sort(raised)
	return raised
}

func TestAlertsFire(t *testing.T) {
	page := readPage(t)
	for _, rule := range readRules(t) {
		t.Run(rule.Alert, func(t *testing.T) {
			if len(faults[rule.Alert]) == 0 {
				t.Fatal("no fault is known that it is raised for")
			}
			want := append([]string{rule.Alert}, also[rule.Alert]...)
			slices.Sort(want)
			if got := firing(t, page, slices.Concat(mended, faults[rule.Alert])); !slices.Equal(got, want) {
				t.Errorf("raised are %v, want %v", got, want)
			}
		})
	}
}

func TestNothingFiresWithoutAFault(t *testing.T) {
	if got := firing(t, readPage(t), mended); len(got) > 0 {
		t.Errorf("raised are %v", got)
	}
}

// The page as it was: of a node whose volume group is missing.
func TestAlertsOfTheRealPage(t *testing.T) {
	got := firing(t, readPage(t), mended[3:])
	if want := []string{"RawblockLVMPoolUnusable", "RawblockPoolDown", "RawblockStorageUnhealthy"}; !slices.Equal(got, want) {
		t.Errorf("raised are %v, want %v", got, want)
	}
}
