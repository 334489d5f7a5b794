package driver

import (
	"errors"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
)

// internalFailure is the reason of an error that is none of the project's.
const internalFailure = "internal"

// publishing are the calls that bring a device to a pod and take it away.
var publishing = []string{
	csi.Node_NodeStageVolume_FullMethodName, csi.Node_NodePublishVolume_FullMethodName,
	csi.Node_NodeUnpublishVolume_FullMethodName, csi.Node_NodeUnstageVolume_FullMethodName,
}

// failures count why devices did not reach pods. The gRPC code alone does not tell a
// device in use from one that is another disk.
type failures struct{ count *prometheus.CounterVec }

// newFailures makes all the counters, so that the first failure is an increase.
func newFailures() *failures {
	f := &failures{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rawblock_csi_publish_errors_total",
		Help: "Calls that bring a device to a pod or take it away and failed, by the reason.",
	}, []string{"method_name", "reason"})}
	for _, method := range publishing {
		f.count.WithLabelValues(method, internalFailure)
		for _, row := range codeOf {
			f.count.WithLabelValues(method, row.reason)
		}
	}
	return f
}

func (f *failures) note(method string, err error) {
	if err != nil && slices.Contains(publishing, method) {
		f.count.WithLabelValues(method, reasonOf(err)).Inc()
	}
}

func reasonOf(err error) string {
	for _, row := range codeOf {
		if errors.Is(err, row.err) {
			return row.reason
		}
	}
	return internalFailure
}

// newBuildInfo is 1, with the version as a label, as the field does it.
func newBuildInfo(version string) prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "rawblock_csi_build_info", Help: "1, with the version of the plugin.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	return info
}
