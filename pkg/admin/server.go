package admin

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/socket"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// attachments are the devices in running containers. Its methods may be called
// concurrently.
type attachments interface {
	// Attach gives a device to a container. Errors: volume.ErrInvalid,
	// volume.ErrNotFound, volume.ErrInUse, volume.ErrMismatch, volume.ErrPrecondition,
	// volume.ErrAborted.
	Attach(ctx context.Context, request hotplug.Request) (hotplug.Attachment, error)
	// Plan tells what Attach would do. Errors: those of Attach.
	Plan(ctx context.Context, request hotplug.Request) (hotplug.Plan, error)
	// Detach takes a device away. Errors: volume.ErrNotFound; volume.ErrInUse with
	// the attachment, while processes have the device open.
	Detach(ctx context.Context, id string) (hotplug.Attachment, error)
	// Revoke takes it also from processes that have it open. Errors: those of Detach;
	// volume.ErrPrecondition, volume.ErrAborted with the attachment.
	Revoke(ctx context.Context, id string) (hotplug.Attachment, error)
	// List returns all attachments.
	List(ctx context.Context) ([]hotplug.Attachment, error)
}

const (
	// maxRequest is the size in bytes of the largest request. The longest is a
	// device, a volume and a path of 4 KiB each.
	maxRequest = 64 << 10
	// drainTimeout is how long calls may take to end once the plugin is told to stop:
	// as long as those of CSI.
	drainTimeout = 25 * time.Second
	// headerTimeout is how long a client may take to say what it wants.
	headerTimeout = 5 * time.Second

	// requestIDLength is that of a request's ID in the log, as for calls of CSI.
	requestIDLength = 10

	levelCall klog.Level = 2
)

// Serve serves on a socket at the path until ctx ends, then lets running calls end,
// and returns nil. Without a node (nil) only attachments are served. The context of a
// call ends when its client goes away. The logger of ctx is that of all calls.
//
// Errors: volume.ErrPrecondition where another process has the socket, or something
// else is at the path; volume.ErrInvalid where the path is too long.
func Serve(ctx context.Context, path string, attachments attachments, node Node) error {
	listener, err := socket.Listen(ctx, path)
	if err != nil {
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	logger := klog.FromContext(ctx)
	server := &http.Server{
		Handler:           newHandler(attachments, node),
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(logr.ToSlogHandler(logger), slog.LevelError),
		// Calls outlast ctx: those that run are let end.
		BaseContext: func(net.Listener) context.Context {
			return klog.NewContext(context.WithoutCancel(ctx), logger)
		},
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		err := server.Shutdown(drain)
		if err != nil {
			// What a call has begun is undone by it once its client has gone.
			err = errors.Join(err, server.Close())
		}
		stopped <- err
	})
	logger.Info("Serving the administrator", "socket", path)
	err = server.Serve(listener)
	if stop() {
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("end the calls of the admin socket: %w", err)
	}
	return nil
}

// action answers a request: what it returns is the answer, or the reason why not.
type action func(*http.Request) (any, error)

func newHandler(attachments attachments, node Node) http.Handler {
	mux := http.NewServeMux()
	if node != nil {
		handleNode(mux, node)
	}
	mux.Handle("GET "+attachmentsPath, handle("List", func(r *http.Request) (any, error) {
		list, err := attachments.List(r.Context())
		if list == nil {
			list = []hotplug.Attachment{} // JSON has it as [] then, not null.
		}
		return list, err
	}))
	mux.Handle("POST "+attachmentsPath, handle("Attach", func(r *http.Request) (any, error) {
		plan, err := isSet(r.URL.RawQuery, dryRun)
		if err != nil {
			return nil, err
		}
		request, err := readRequest(r)
		if err != nil {
			return nil, err
		}
		if plan {
			return attachments.Plan(r.Context(), request)
		}
		return attachments.Attach(r.Context(), request)
	}))
	mux.Handle("DELETE "+attachmentsPath+"/{id}", handle("Detach", func(r *http.Request) (any, error) {
		revoke, err := isSet(r.URL.RawQuery, force)
		if err != nil {
			return nil, err
		}
		if revoke {
			return attachments.Revoke(r.Context(), r.PathValue("id"))
		}
		return attachments.Detach(r.Context(), r.PathValue("id"))
	}))
	return mux
}

// isSet reads a query of which one word is known. One that is misspelt must not pass
// for none. Errors: volume.ErrInvalid.
func isSet(query, word string) (bool, error) {
	switch query {
	case "":
		return false, nil
	case word, word + "=true":
		return true, nil
	}
	return false, fmt.Errorf("%w: the query is %q; expected %s, or none", volume.ErrInvalid, query, word)
}

func readRequest(r *http.Request) (hotplug.Request, error) {
	var request hotplug.Request
	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequest))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		return request, fmt.Errorf("%w: read the request: %s", volume.ErrInvalid, err.Error())
	}
	if decoder.More() {
		return request, fmt.Errorf("%w: read the request: there is more than one", volume.ErrInvalid)
	}
	return request, nil
}

// handle logs a call, and writes its answer.
func handle(name string, action action) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		logger := klog.FromContext(r.Context()).WithValues("requestID", rand.Text()[:requestIDLength], "method", name)
		answer, err := recovering(r.WithContext(klog.NewContext(r.Context(), logger)), action) //nolint:contextcheck // The request has it.
		status, code := http.StatusOK, "OK"
		if err != nil {
			var failed failure
			failed, status = newFailure(err)
			if attachment, ok := answer.(hotplug.Attachment); ok && attachment.ID != "" {
				failed.Attachment = &attachment
			}
			answer, code = failed, failed.Reason
		}
		logCall(logger, code, err, time.Since(start))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			logger.V(int(levelCall)).Info("The client went away before the answer", "err", err)
		}
	})
}

// logCall logs what became of a call. A refusal is an answer like another: who waits
// until a device is released gets it again and again.
func logCall(logger klog.Logger, code string, err error, took time.Duration) {
	switch {
	case err == nil:
		logger.V(int(levelCall)).Info("Admin call done", "code", code, "duration", took)
	case code == internal:
		logger.Error(err, "Admin call failed", "code", code, "duration", took)
	default:
		logger.V(int(levelCall)).Info("Admin call refused", "code", code, "duration", took, "err", err)
	}
}

// recovering keeps a fault in one call from ending the plugin.
func recovering(r *http.Request, action action) (answer any, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			klog.FromContext(r.Context()).Error(nil, "Admin call panicked", "cause", cause, "stack", string(debug.Stack()))
			err = errors.New("the plugin has a fault, please report it with the stack in its log")
		}
	}()
	return action(r)
}
