package disk

import (
	"path/filepath"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one pool. A disk is named as the kernel names it. The name
// of the pool is a constant label, by which the metrics of two pools differ.
type metrics struct{ disks, refused, bytes, wiping *prometheus.Desc }

func newMetrics(pool string) metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("rawblock_csi_disk_pool_"+name, help, labels, prometheus.Labels{"pool": pool})
	}
	return metrics{
		disks:   desc("disks", "Disks of the machine by their state in the pool.", "state"),
		refused: desc("refused", "Disks that are not in the pool, with the state that says why; the log has the reason.", "disk", "state"),
		bytes:   desc("bytes", "Bytes of a disk of the pool: total, free, wiping, unwiped.", "disk", "kind"),
		wiping:  desc("wiping_left_bytes", "Bytes of a space of a disk that remain to be wiped.", "disk", "start"),
	}
}

// adopted is the state of a disk of the pool.
const adopted = "adopted"

// Describe and Collect make the pool a prometheus.Collector.
func (p *Pool) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{p.metrics.disks, p.metrics.refused, p.metrics.bytes, p.metrics.wiping} {
		descs <- desc
	}
}

// Collect sends what Status returns. It does not look at the disks.
func (p *Pool) Collect(sent chan<- prometheus.Metric) {
	status := p.Status()
	gauge := func(desc *prometheus.Desc, value uint64, labels ...string) {
		sent <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	states := map[string]uint64{adopted: uint64(len(status.Disks))}
	for _, refused := range status.Refused {
		states[refused.State]++
		gauge(p.metrics.refused, 1, refused.Name, refused.State)
	}
	for state, count := range states {
		gauge(p.metrics.disks, count, state)
	}
	for _, disk := range status.Disks {
		name, wiping := filepath.Base(disk.Path), uint64(0)
		for _, space := range disk.Wiping {
			wiping += space.Left
			gauge(p.metrics.wiping, space.Left, name, strconv.FormatUint(space.Start, 10))
		}
		for kind, bytes := range map[string]uint64{"total": disk.Size, "free": disk.Free, "wiping": wiping, "unwiped": disk.Unwiped} {
			gauge(p.metrics.bytes, bytes, name, kind)
		}
	}
}
