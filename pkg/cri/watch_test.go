package cri_test

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestWatch(t *testing.T) {
	for name, test := range map[string]struct {
		events int
		err    error
		want   error
	}{
		"none, and the end": {0, nil, nil},
		"some, and the end": {3, nil, nil},
		"unsupported":       {0, status.Error(codes.Unimplemented, "unknown method GetContainerEvents"), cri.ErrUnsupported},
		"goes away":         {2, status.Error(codes.Unavailable, "closing"), volume.ErrPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			client := (&fake{events: func(stream runtime.RuntimeService_GetContainerEventsServer) error {
				for range test.events {
					if err := stream.Send(&runtime.ContainerEventResponse{}); err != nil {
						return err
					}
				}
				return test.err
			}}).dial(t)
			changes := 0
			err := client.Watch(rig.Context(t), func() { changes++ })
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if changes != test.events {
				t.Errorf("%d changes, want %d", changes, test.events)
			}
		})
	}
}

// A watch goes on for as long as it is wanted, with no deadline.
func TestWatchEnds(t *testing.T) {
	deadlines := make(chan bool, 1)
	client := (&fake{events: func(stream runtime.RuntimeService_GetContainerEventsServer) error {
		_, has := stream.Context().Deadline()
		deadlines <- has
		if err := stream.Send(&runtime.ContainerEventResponse{}); err != nil {
			return err
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}}).dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wantError(t, client.Watch(ctx, cancel), context.Canceled, "watch containers")
	if <-deadlines {
		t.Error("the watch has a deadline")
	}
}
