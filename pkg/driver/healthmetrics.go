package driver

import (
	"context"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// healthMetrics count conditions by their reason, whenever they are asked for: kubelet
// does not show them in most clusters.
type healthMetrics struct {
	reports *reports
	logger  klog.Logger

	volumes, storage *prometheus.Desc
}

func newHealthMetrics(reports *reports, logger klog.Logger) *healthMetrics {
	return &healthMetrics{
		reports: reports, logger: logger,
		volumes: prometheus.NewDesc("rawblock_csi_health_volumes", "Volumes of this node with a condition, by its reason.", []string{"reason"}, nil),
		storage: prometheus.NewDesc("rawblock_csi_health_storage", "Whether the pools of this node have a condition, by its reason (1: yes).", []string{"reason"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (h *healthMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- h.volumes
	descs <- h.storage
}

// Collect implements prometheus.Collector. A metric that cannot be found out is left
// out, and the others stay on the page.
func (h *healthMetrics) Collect(sent chan<- prometheus.Metric) {
	ctx := klog.NewContext(context.Background(), h.logger)
	volumes, err := h.countVolumes(ctx)
	h.send(sent, h.volumes, volumes, err)
	conditions, err := h.reports.storage(ctx)
	storage := map[volume.Reason]int{}
	for _, condition := range conditions {
		storage[condition.Reason] = 1
	}
	h.send(sent, h.storage, storage, err)
}

// countVolumes counts those of the pools, and those that an administrator made and
// that are staged, or could not be of late.
func (h *healthMetrics) countVolumes(ctx context.Context) (map[volume.Reason]int, error) {
	// A pool that fails must not hide the volumes of the others.
	ids, err := h.reports.provisioned(ctx)
	if err != nil {
		h.logger.Error(err, "Cannot list a pool for the metrics of health")
	}
	staged, err := h.reports.publisher.AllStaged()
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	for _, device := range staged {
		wanted[device.VolumeID] = true
	}
	for id := range h.reports.monitor.Unopened() {
		wanted[id] = true
	}
	found, err := h.reports.all(ctx, slices.Collect(maps.Keys(wanted)))
	count := map[volume.Reason]int{}
	for _, conditions := range found {
		reasons := map[volume.Reason]bool{}
		for _, condition := range conditions {
			reasons[condition.Reason] = true
		}
		for reason := range reasons {
			count[reason]++
		}
	}
	return count, err
}

func (h *healthMetrics) send(sent chan<- prometheus.Metric, desc *prometheus.Desc, count map[volume.Reason]int, err error) {
	if err != nil {
		h.logger.Error(err, "Cannot find out the health for the metrics")
		return
	}
	for _, reason := range volume.Reasons() {
		sent <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(count[reason]), string(reason))
	}
}
