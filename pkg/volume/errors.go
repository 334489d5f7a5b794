package volume

import "errors"

// The sentinel errors of the project. A room wraps one of them with what was
// being done and what the operator can do about it:
//
//	fmt.Errorf("open %s: %w: the link leads nowhere", path, volume.ErrNotFound)
//
// The driver turns them into gRPC codes in one place (pkg/driver/errors.go).
// An error that wraps none of them is a failure of the node itself (INTERNAL).
var (
	// ErrInvalid says that a field of the request is missing or malformed.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotFound says that there is no such volume, or that its device has gone.
	ErrNotFound = errors.New("not found")
	// ErrIncompatible says that the volume is already there with other arguments.
	ErrIncompatible = errors.New("already exists with other arguments")
	// ErrPrecondition says that the node or the volume is in a state that forbids the call.
	ErrPrecondition = errors.New("failed precondition")
	// ErrInUse says that somebody else uses the device.
	ErrInUse = errors.New("device is in use")
	// ErrMismatch says that the device is not the one that was asked for.
	ErrMismatch = errors.New("device identity mismatch")
	// ErrAborted says that another call for the same volume is under way.
	ErrAborted = errors.New("another operation is in progress")
	// ErrExhausted says that the node has no more of what the call needs.
	ErrExhausted = errors.New("resource exhausted")
	// ErrOutOfRange says that the size asked for cannot be had.
	ErrOutOfRange = errors.New("out of range")
)
