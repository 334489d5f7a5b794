package driver

import (
	"context"
	"crypto/rand"
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

// The log levels of calls: a line for each, one for each repeat of a failure that is not
// told, and their contents.
const (
	levelCall    klog.Level = 2
	levelRepeat  klog.Level = 4
	levelContent klog.Level = 5
)

// requestIDLength is that of a request's ID: 50 bits tell apart those of a log.
const requestIDLength = 10

// calls is what every call passes through: it logs and counts the call, turns
// its error into a gRPC code, and a panic into INTERNAL, so that a fault in one
// call does not end those of the other volumes.
type calls struct {
	logger   klog.Logger
	seconds  *prometheus.HistogramVec
	failures *failures
	repeats  repeats
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
		failures: newFailures(),
	}
	for _, collector := range []prometheus.Collector{c.seconds, c.failures.count} {
		if err := registry.Register(collector); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return c, nil
}

func (c *calls) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	subject := subjectOf(req)
	logger := subject.addTo(c.logger.WithValues("requestID", rand.Text()[:requestIDLength], "method", path.Base(info.FullMethod)))
	logContent(logger, "Call", "request", req)
	response, err := recovering(klog.NewContext(ctx, logger), req, handler)
	c.failures.note(info.FullMethod, err)
	err = toStatus(err)
	took := time.Since(start)
	c.seconds.WithLabelValues(info.FullMethod, status.Code(err).String()).Observe(took.Seconds())
	c.logEnd(logger, failure{method: info.FullMethod, volume: subject.volume, target: subject.target}, err, took)
	if err != nil {
		return nil, err
	}
	logContent(logger, "Answer", "response", response)
	return response, nil
}

// logEnd logs what became of a call. A failure is told at any level; its repeats, which
// kubelet makes without end, with growing gaps.
func (c *calls) logEnd(logger klog.Logger, call failure, err error, took time.Duration) {
	code := status.Code(err).String()
	if err == nil {
		c.repeats.forget(call)
		logger.V(int(levelCall)).Info("Call done", "code", code, "duration", took)
		return
	}
	call.err = err.Error()
	tell, silent := c.repeats.note(call, time.Now())
	if !tell {
		logger.V(int(levelRepeat)).Info("Call failed again", "code", code, "duration", took, "err", err)
		return
	}
	logger.Error(err, "Call failed", "code", code, "duration", took, "repeats", silent)
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
