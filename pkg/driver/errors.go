package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// codeOf is the table from the project's errors to gRPC codes, and to the reasons that
// metrics count. Where an error wraps several, the first row counts.
var codeOf = []struct {
	err    error
	code   codes.Code
	reason string
}{
	{context.Canceled, codes.Canceled, "canceled"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "deadline"},
	{volume.ErrInvalid, codes.InvalidArgument, "invalid"},
	{volume.ErrNotFound, codes.NotFound, "not_found"},
	{volume.ErrIncompatible, codes.AlreadyExists, "incompatible"},
	{volume.ErrInUse, codes.FailedPrecondition, "in_use"},
	{volume.ErrMismatch, codes.FailedPrecondition, "mismatch"},
	{volume.ErrPrecondition, codes.FailedPrecondition, "precondition"},
	{volume.ErrAborted, codes.Aborted, "aborted"},
	{volume.ErrExhausted, codes.ResourceExhausted, "exhausted"},
	{volume.ErrOutOfRange, codes.OutOfRange, "out_of_range"},
}

// toStatus turns an error into what a caller gets: the same words, with the code
// that the CSI specification prescribes. An error that has a code already, such
// as UNIMPLEMENTED from the generated code, keeps it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, row := range codeOf {
		if errors.Is(err, row.err) {
			return status.Error(row.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}
