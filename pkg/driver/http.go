package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// answerTimeout is how long the plugin may take to answer its own liveness check.
const answerTimeout = 5 * time.Second

// newHandler answers /metrics, /healthz and /readyz. /healthz says that the CSI
// socket answers, so that kubelet restarts a plugin that hangs; /readyz that the
// plugin can do its work, which a restart would not mend.
func newHandler(csiSocket string, ready func() error, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, ready()) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { answer(w, callSocket(r.Context(), csiSocket)) })
	return mux
}

func callSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("reach the CSI socket: %w", err)
	}
	defer conn.Close() //nolint:errcheck // The answer is all that was wanted.
	_, err = csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	return err
}

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, address string, handler http.Handler) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on --metrics-address: %w", err)
	}
	server := &http.Server{
		Handler: http.MaxBytesHandler(handler, 0), // No page takes a body.
		// Who sends or reads slowly, or nothing, keeps no connection from others.
		ReadTimeout: answerTimeout, WriteTimeout: 12 * answerTimeout, IdleTimeout: 12 * answerTimeout,
		MaxHeaderBytes: maxHeaders,
	}
	stop := context.AfterFunc(ctx, func() {
		server.Close() //nolint:errcheck,gosec // Nobody waits for a metric while the plugin stops.
	})
	defer stop()
	if err := server.Serve(netutil.LimitListener(listener, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve --metrics-address: %w", err)
	}
	return nil
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok") //nolint:errcheck // The client has gone.
}
