package main

import (
	"context"
	"errors"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The exit codes. They stay as they are.
const (
	exitDone = iota
	exitFailed
	exitUsage
	exitNotFound
	exitInUse
	exitRefused
	exitUnreachable
	exitAgain
	exitFindings

	// exitInterrupted is that of a program that SIGINT ended, as shells have it.
	exitInterrupted = 130
)

const exitHelp = `Exit codes:
  0    done
  1    any other failure; the message says which
  2    the command line, or a value in it, is wrong
  3    there is no such device, volume, container or attachment
  4    the device is in use, or still held by processes
  5    refused: it cannot be done so
  6    no plugin answers on the socket
  7    not done in time, or something else is under way; try again
  8    doctor: something is left over, or wrong
  130  interrupted (Ctrl-C, SIGTERM)
Of several attachments, the first that failed counts. Errors are told on stderr.`

// codes is the table from errors to exit codes. The first row counts.
var codes = []struct {
	err  error
	code int
}{
	{errFindings, exitFindings},
	{admin.ErrUnreachable, exitUnreachable},
	{context.DeadlineExceeded, exitAgain},
	{context.Canceled, exitAgain}, // The plugin was stopped.
	{volume.ErrAborted, exitAgain},
	{volume.ErrInvalid, exitUsage},
	{volume.ErrOutOfRange, exitUsage},
	{volume.ErrNotFound, exitNotFound},
	{volume.ErrInUse, exitInUse},
	{volume.ErrPrecondition, exitRefused},
	{volume.ErrMismatch, exitRefused},
	{volume.ErrIncompatible, exitRefused},
	{volume.ErrExhausted, exitRefused},
}

// exitCode returns the code for an error of a command that was understood.
func exitCode(err error) int {
	for _, row := range codes {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return exitFailed
}
