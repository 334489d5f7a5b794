package driver

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/health"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// poolMetrics are those that pools of all kinds have, and those of volumes, found out
// whenever they are asked for. Pools are labels, volumes are not: there may be any
// number of them over time.
type poolMetrics struct {
	pools     map[string]Pool
	publisher *publish.Publisher
	asker     health.Asker[space]
	logger    klog.Logger

	up, bytes, volumes, used *prometheus.Desc
}

// space is what a pool has promised and can promise.
type space struct {
	available, promised uint64
	volumes, missing    int
}

func newPoolMetrics(pools map[string]Pool, publisher *publish.Publisher, logger klog.Logger) *poolMetrics {
	return &poolMetrics{
		pools: pools, publisher: publisher, logger: logger,
		up:      prometheus.NewDesc("rawblock_csi_pool_up", "Whether the pool tells what is in it: 1, or 0; the log has the reason.", []string{"pool"}, nil),
		bytes:   prometheus.NewDesc("rawblock_csi_pool_bytes", "Bytes of the pool: available for volumes with no parameters, promised to volumes.", []string{"pool", "kind"}, nil),
		volumes: prometheus.NewDesc("rawblock_csi_pool_volumes", "Volumes of the pool: present, or missing (damaged, or on a disk that has gone).", []string{"pool", "state"}, nil),
		used:    prometheus.NewDesc("rawblock_csi_volumes", "Volumes in use on this node: staged, and of these published.", []string{"state"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *poolMetrics) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{m.up, m.bytes, m.volumes, m.used} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector. What cannot be found out is left out, and the
// rest stays on the page.
func (m *poolMetrics) Collect(sent chan<- prometheus.Metric) {
	ctx := klog.NewContext(context.Background(), m.logger)
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		sent <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for name, pool := range m.pools {
		found, err := m.asker.Ask(ctx, "pool "+name, func(ctx context.Context) (space, error) { return spaceOf(ctx, pool) })
		if err != nil {
			m.logger.Error(err, "Cannot find out what a pool has for the metrics", "pool", name)
			gauge(m.up, 0, name)
			continue
		}
		gauge(m.up, 1, name)
		gauge(m.bytes, float64(found.available), name, "available")
		gauge(m.bytes, float64(found.promised), name, "promised")
		gauge(m.volumes, float64(found.volumes), name, "present")
		gauge(m.volumes, float64(found.missing), name, "missing")
	}
	staged, published, err := m.countUsed()
	if err != nil {
		m.logger.Error(err, "Cannot find out what is staged for the metrics")
		return
	}
	gauge(m.used, float64(staged), "staged")
	gauge(m.used, float64(published), "published")
}

func spaceOf(ctx context.Context, pool Pool) (space, error) {
	all, err := pool.List(ctx)
	if err != nil {
		return space{}, err
	}
	capacity, err := pool.Capacity(ctx, nil)
	if err != nil {
		return space{}, err
	}
	found := space{available: capacity.Available, promised: sizeOf(all), volumes: len(all)}
	if reporter, ok := pool.(reporter); ok {
		found.missing = len(reporter.Missing())
	}
	return found, nil
}

func sizeOf(all []volume.Info) (sum uint64) {
	for _, info := range all {
		sum += info.Size
	}
	return sum
}

func (m *poolMetrics) countUsed() (staged, published int, err error) {
	devices, err := m.publisher.AllStaged()
	if err != nil {
		return 0, 0, err
	}
	for _, device := range devices {
		targets, err := m.publisher.Targets(device.VolumeID)
		if err != nil {
			return 0, 0, err
		}
		if len(targets) > 0 {
			published++
		}
	}
	return len(devices), published, nil
}
