package lvm

import "github.com/prometheus/client_golang/prometheus"

// metrics are those of one pool. The name of the pool is a constant label, by which the
// metrics of two pools differ.
type metrics struct{ usable, bytes, used, volumes, wiping *prometheus.Desc }

func newMetrics(pool string) metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("rawblock_csi_lvm_pool_"+name, help, labels, prometheus.Labels{"pool": pool})
	}
	return metrics{
		usable:  desc("usable", "Whether volumes can be made: 1, or 0; the log has the reason."),
		bytes:   desc("bytes", "Bytes of the volume group, or of the thin pool: total, free (in the volume group), promised (by the thin pool), wiping.", "kind"),
		used:    desc("thin_used_ratio", "How much of the thin pool is used, from 0 to 1: data, metadata.", "part"),
		volumes: desc("volumes", "Logical volumes of the pool: volume, snapshot.", "kind"),
		wiping:  desc("wiping_failed", "Deleted volumes whose last attempt to be wiped failed; the log has the reason."),
	}
}

// Describe and Collect make the pool a prometheus.Collector.
func (p *Pool) Describe(descs chan<- *prometheus.Desc) {
	m := p.metrics
	for _, desc := range []*prometheus.Desc{m.usable, m.bytes, m.used, m.volumes, m.wiping} {
		descs <- desc
	}
}

// Collect sends what Status returns. No program is run.
func (p *Pool) Collect(sent chan<- prometheus.Metric) {
	status := p.Status()
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		sent <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	usable := 1.0
	if status.Problem != nil {
		usable = 0
	}
	gauge(p.metrics.usable, usable)
	wiping, failed := uint64(0), 0
	for _, space := range status.Wiping {
		wiping += space.Left
		if space.Err != nil {
			failed++
		}
	}
	for kind, bytes := range map[string]uint64{"total": status.Size, "free": status.Free, "wiping": wiping} {
		gauge(p.metrics.bytes, float64(bytes), kind)
	}
	gauge(p.metrics.wiping, float64(failed))
	gauge(p.metrics.volumes, float64(status.Volumes), "volume")
	gauge(p.metrics.volumes, float64(status.Snapshots), "snapshot")
	if p.options.ThinPool != "" {
		gauge(p.metrics.bytes, float64(status.Promised), "promised")
		gauge(p.metrics.used, status.Data/100, "data")
		gauge(p.metrics.used, status.Metadata/100, "metadata")
	}
}
