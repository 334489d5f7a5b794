package driver

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// The log levels of calls: a line for each, and their contents.
const (
	levelCall    klog.Level = 2
	levelContent klog.Level = 5
)

// calls is what every call passes through: it logs and counts the call, turns
// its error into a gRPC code, and a panic into INTERNAL, so that a fault in one
// call does not end those of the other volumes.
type calls struct {
	logger  klog.Logger
	seconds *prometheus.HistogramVec
}

func newCalls(logger klog.Logger, registry prometheus.Registerer) (*calls, error) {
	c := &calls{
		logger: logger,
		// The name and the labels are those of csi-lib-utils; its buckets begin
		// where a call of this driver has long ended.
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:        "csi_plugin_operations_seconds",
			Help:        "Container Storage Interface operation duration with gRPC error code status total",
			Buckets:     []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 1, 5, 15, 60, 120},
			ConstLabels: prometheus.Labels{"driver_name": Name},
		}, []string{"method_name", "grpc_status_code"}),
	}
	if err := registry.Register(c.seconds); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return c, nil
}

func (c *calls) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	logger := c.logger.WithValues("method", path.Base(info.FullMethod))
	if named, ok := req.(interface{ GetVolumeId() string }); ok {
		logger = logger.WithValues("volume", named.GetVolumeId())
	}
	logContent(logger, "Call", "request", req)
	response, err := recovering(klog.NewContext(ctx, logger), req, handler)
	err = toStatus(err)
	took, code := time.Since(start), status.Code(err)
	c.seconds.WithLabelValues(info.FullMethod, code.String()).Observe(took.Seconds())
	if err != nil {
		logger.Error(err, "Call failed", "code", code.String(), "duration", took)
		return nil, err
	}
	logger.V(int(levelCall)).Info("Call done", "code", code.String(), "duration", took)
	logContent(logger, "Answer", "response", response)
	return response, nil
}

// logContent logs a message as text: a JSON log would show the empty object for
// what StripSecrets returns.
func logContent(logger klog.Logger, event, name string, message any) {
	if logger = logger.V(int(levelContent)); logger.Enabled() {
		logger.Info(event, name, protosanitizer.StripSecrets(message).String())
	}
}

func recovering(ctx context.Context, req any, handler grpc.UnaryHandler) (response any, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			klog.FromContext(ctx).Error(nil, "Call panicked", "cause", cause, "stack", string(debug.Stack()))
			err = fmt.Errorf("the plugin has a fault, please report it with the stack in its log: %v", cause)
		}
	}()
	return handler(ctx, req)
}
