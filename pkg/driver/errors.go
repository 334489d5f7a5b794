package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// codeOf is the table from the project's errors to gRPC codes. Where an error
// wraps several, the first row counts.
var codeOf = []struct {
	err  error
	code codes.Code
}{
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{volume.ErrInvalid, codes.InvalidArgument},
	{volume.ErrNotFound, codes.NotFound},
	{volume.ErrIncompatible, codes.AlreadyExists},
	{volume.ErrInUse, codes.FailedPrecondition},
	{volume.ErrMismatch, codes.FailedPrecondition},
	{volume.ErrPrecondition, codes.FailedPrecondition},
	{volume.ErrAborted, codes.Aborted},
	{volume.ErrExhausted, codes.ResourceExhausted},
	{volume.ErrOutOfRange, codes.OutOfRange},
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
