package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestToStatus(t *testing.T) {
	for err, want := range map[error]codes.Code{
		volume.ErrInvalid:        codes.InvalidArgument,
		volume.ErrNotFound:       codes.NotFound,
		volume.ErrIncompatible:   codes.AlreadyExists,
		volume.ErrPrecondition:   codes.FailedPrecondition,
		volume.ErrInUse:          codes.FailedPrecondition,
		volume.ErrMismatch:       codes.FailedPrecondition,
		volume.ErrAborted:        codes.Aborted,
		volume.ErrExhausted:      codes.ResourceExhausted,
		volume.ErrOutOfRange:     codes.OutOfRange,
		context.Canceled:         codes.Canceled,
		context.DeadlineExceeded: codes.DeadlineExceeded,
		fs.ErrNotExist:           codes.Internal,
		errors.New("any other"):  codes.Internal,
		status.Error(codes.Unimplemented, "method X not implemented"): codes.Unimplemented,
	} {
		t.Run(err.Error(), func(t *testing.T) {
			for _, wrapped := range []error{
				err,
				fmt.Errorf("do something: %w", err),
				errors.Join(errors.New("one"), err),
				fmt.Errorf("%w: %w", errors.New("one"), fmt.Errorf("two: %w", err)),
			} {
				if got := status.Code(toStatus(wrapped)); got != want {
					t.Errorf("%q is %s, want %s", wrapped, got, want)
				}
			}
		})
	}
}

// The reference explains each code that a call can end with, and no other.
func TestErrorsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Errors\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var got []codes.Code
	for _, row := range regexp.MustCompile(`(?m)^\| ([A-Z_]+) \| .*\. \|$`).FindAllStringSubmatch(section, -1) {
		var code codes.Code
		if err := code.UnmarshalJSON([]byte(strconv.Quote(row[1]))); err != nil {
			t.Error(err)
		}
		got = append(got, code)
	}
	want := []codes.Code{codes.Internal, codes.Unimplemented}
	for _, row := range codeOf {
		want = append(want, row.code)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, slices.Compact(want)) {
		t.Errorf("the page has %v, and calls end with %v", got, want)
	}
}

func TestToStatusOfSeveralErrors(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want codes.Code
	}{
		"none":                       {nil, codes.OK},
		"a request first":            {errors.Join(volume.ErrMismatch, volume.ErrInvalid), codes.InvalidArgument},
		"the end of the call first":  {fmt.Errorf("%w: %w", volume.ErrNotFound, context.Canceled), codes.Canceled},
		"the cause is the system's":  {fmt.Errorf("%w: %w", volume.ErrExhausted, fs.ErrPermission), codes.ResourceExhausted},
		"the words are no sentinel":  {errors.New("device is in use"), codes.Internal},
		"a failed undo hides no row": {errors.Join(volume.ErrPrecondition, errors.New("unmount: busy")), codes.FailedPrecondition},
	} {
		if got := status.Code(toStatus(test.err)); got != test.want {
			t.Errorf("%s: %v is %s, want %s", name, test.err, got, test.want)
		}
	}
}

func TestToStatusKeepsTheWords(t *testing.T) {
	err := fmt.Errorf("open /dev/x: %w: the link leads nowhere", volume.ErrNotFound)
	if got := status.Convert(toStatus(err)).Message(); got != err.Error() {
		t.Errorf("got %q, want %q", got, err)
	}
}
