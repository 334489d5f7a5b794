package disk

import (
	"path/filepath"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// The metrics of a pool. A disk is named as the kernel names it.
var (
	disksMetric = prometheus.NewDesc("rawblock_csi_disk_pool_disks",
		"Disks of the machine by their state in the pool.", []string{"pool", "state"}, nil)
	refusedMetric = prometheus.NewDesc("rawblock_csi_disk_pool_refused",
		"Disks that are not in the pool, with the state that says why; the log has the reason.", []string{"pool", "disk", "state"}, nil)
	bytesMetric = prometheus.NewDesc("rawblock_csi_disk_pool_bytes",
		"Bytes of a disk of the pool: total, free, wiping, unwiped.", []string{"pool", "disk", "kind"}, nil)
	wipedMetric = prometheus.NewDesc("rawblock_csi_disk_pool_wiping_left_bytes",
		"Bytes of a space of a disk that remain to be wiped.", []string{"pool", "disk", "start"}, nil)
)

// adopted is the state of a disk of the pool.
const adopted = "adopted"

// Describe and Collect make the pool a prometheus.Collector.
func (p *Pool) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{disksMetric, refusedMetric, bytesMetric, wipedMetric} {
		descs <- desc
	}
}

// Collect sends what Status returns. It does not look at the disks.
func (p *Pool) Collect(metrics chan<- prometheus.Metric) {
	status := p.Status()
	gauge := func(desc *prometheus.Desc, value uint64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), append([]string{p.name}, labels...)...)
	}
	states := map[string]uint64{adopted: uint64(len(status.Disks))}
	for _, refused := range status.Refused {
		states[refused.State]++
		gauge(refusedMetric, 1, refused.Name, refused.State)
	}
	for state, count := range states {
		gauge(disksMetric, count, state)
	}
	for _, disk := range status.Disks {
		name, wiping := filepath.Base(disk.Path), uint64(0)
		for _, space := range disk.Wiping {
			wiping += space.Left
			gauge(wipedMetric, space.Left, name, strconv.FormatUint(space.Start, 10))
		}
		for kind, bytes := range map[string]uint64{"total": disk.Size, "free": disk.Free, "wiping": wiping, "unwiped": disk.Unwiped} {
			gauge(bytesMetric, bytes, name, kind)
		}
	}
}
