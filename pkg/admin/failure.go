package admin

import (
	"context"
	"errors"
	"net/http"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The path of the attachments, and what it is followed by or asked with.
const (
	attachmentsPath = "/v1/attachments"
	dryRun          = "dryRun"
	force           = "force"
)

// failure is the answer to a call that failed.
type failure struct {
	// Reason stands for the sentinel error.
	Reason string `json:"reason"`
	// Message is the whole error.
	Message string `json:"message"`
	// Attachment is what became of it, where it could not be released.
	Attachment *hotplug.Attachment `json:"attachment,omitempty"`
}

// reasons is the table from the project's errors to answers and back. Where an
// error wraps several, the first row counts.
var reasons = []struct {
	err    error
	reason string
	status int
}{
	{context.Canceled, "Canceled", http.StatusServiceUnavailable},
	{context.DeadlineExceeded, "DeadlineExceeded", http.StatusGatewayTimeout},
	{volume.ErrInvalid, "Invalid", http.StatusBadRequest},
	{volume.ErrNotFound, "NotFound", http.StatusNotFound},
	{volume.ErrIncompatible, "Incompatible", http.StatusConflict},
	{volume.ErrInUse, "InUse", http.StatusConflict},
	{volume.ErrMismatch, "Mismatch", http.StatusConflict},
	{volume.ErrPrecondition, "Precondition", http.StatusPreconditionFailed},
	{volume.ErrAborted, "Aborted", http.StatusConflict},
	{volume.ErrExhausted, "Exhausted", http.StatusInsufficientStorage},
	{volume.ErrOutOfRange, "OutOfRange", http.StatusBadRequest},
}

// internal is the reason of an error that wraps no sentinel.
const internal = "Internal"

func newFailure(err error) (failure, int) {
	for _, row := range reasons {
		if errors.Is(err, row.err) {
			return failure{Reason: row.reason, Message: err.Error()}, row.status
		}
	}
	return failure{Reason: internal, Message: err.Error()}, http.StatusInternalServerError
}

// err returns the error that the failure stands for: its words, and its sentinel.
func (f failure) err() error {
	for _, row := range reasons {
		if row.reason == f.Reason {
			return &remoteError{f.Message, row.err}
		}
	}
	return &remoteError{f.Message, nil}
}

// remoteError is an error that the plugin has answered with.
type remoteError struct {
	message  string
	sentinel error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.sentinel }
