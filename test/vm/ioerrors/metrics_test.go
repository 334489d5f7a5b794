package ioerrors

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// metric returns the sum of the gauges of a name.
func (n *node) metric(t *testing.T, name string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	rig.Must(t, registry.Register(n.pool))
	families, err := registry.Gather()
	rig.Must(t, err)
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			sum += metric.GetGauge().GetValue()
		}
	}
	return sum
}
