package file

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"
)

// newMetric is that of one pool. The name of the pool is a constant label, by which the
// metrics of two pools differ.
func newMetric(pool string) *prometheus.Desc {
	return prometheus.NewDesc("rawblock_csi_file_pool_bytes", "Bytes of the pool: capacity for thick volumes, free in its filesystem beyond what is kept back.",
		[]string{"kind"}, prometheus.Labels{"pool": pool})
}

// Describe and Collect make the pool a prometheus.Collector.
func (p *Pool) Describe(descs chan<- *prometheus.Desc) { descs <- p.metric }

// Collect sends what the filesystem says. Nothing is read from its disk.
func (p *Pool) Collect(sent chan<- prometheus.Metric) {
	limits, err := p.limits()
	if err != nil {
		klog.Background().Error(err, "Cannot find out the space of a pool for the metrics", "pool", p.name)
		return
	}
	sent <- prometheus.MustNewConstMetric(p.metric, prometheus.GaugeValue, float64(limits.thick), "capacity")
	sent <- prometheus.MustNewConstMetric(p.metric, prometheus.GaugeValue, float64(limits.free), "free")
}
