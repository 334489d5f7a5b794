package hotplug

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what Prometheus sees of the attachments.
type metrics struct {
	attachments *prometheus.GaugeVec
	restored    prometheus.Counter
	revoked     prometheus.Counter
}

func newMetrics() *metrics {
	return &metrics{
		attachments: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "rawblock_csi_hotplug_attachments",
			Help: "Devices attached to running containers, by state, as last reconciled.",
		}, []string{"state"}),
		restored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rawblock_csi_hotplug_grants_restored_total",
			Help: "Grants that a container had lost, to systemd for one, and was given again.",
		}),
		revoked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rawblock_csi_hotplug_devices_revoked_total",
			Help: "Devices that were taken from processes that had them open.",
		}),
	}
}

// states are all that an attachment can be in.
var states = []State{Pending, Attached, Waiting, Detaching, Held, Lost, Refused}

func (m *metrics) set(all []record) {
	count := map[State]float64{}
	for _, one := range all {
		count[one.State]++
	}
	for _, state := range states {
		m.attachments.WithLabelValues(string(state)).Set(count[state])
	}
}

// Describe implements prometheus.Collector.
func (m *Manager) Describe(descriptions chan<- *prometheus.Desc) {
	m.metrics.attachments.Describe(descriptions)
	m.metrics.restored.Describe(descriptions)
	m.metrics.revoked.Describe(descriptions)
}

// Collect implements prometheus.Collector.
func (m *Manager) Collect(collected chan<- prometheus.Metric) {
	m.metrics.attachments.Collect(collected)
	m.metrics.restored.Collect(collected)
	m.metrics.revoked.Collect(collected)
}
