package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const gibibyte = 1 << 30

// capacities is how much room the scheduler is told of for the test's class, in
// bytes by node.
func (s *scene) capacities(ctx context.Context) (map[string]int64, error) {
	list, err := s.kube.StorageV1().CSIStorageCapacities(pluginSpace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	rooms := map[string]int64{}
	for _, object := range list.Items {
		if object.StorageClassName == s.namespace && object.Capacity != nil && object.NodeTopology != nil {
			rooms[object.NodeTopology.MatchLabels[topologyKey]] = object.Capacity.Value()
		}
	}
	return rooms, nil
}

// untilRooms waits until there is a capacity for each node, and is of them.
func (s *scene) untilRooms(what string, is func(map[string]int64) bool) map[string]int64 {
	s.Helper()
	var rooms map[string]int64
	s.until(what, func(ctx context.Context) (bool, error) {
		var err error
		rooms, err = s.capacities(ctx)
		if err == nil && (len(rooms) != len(s.nodes()) || !is(rooms)) {
			err = fmt.Errorf("the rooms are %v", rooms)
		}
		return err == nil, err
	})
	return rooms
}

func TestCapacity(t *testing.T) {
	s := newScene(t)
	before := s.untilRooms("there is room on each node", func(rooms map[string]int64) bool {
		return rooms["node-1"] > gibibyte && rooms["node-2"] > gibibyte
	})
	s.claim("data", "1Gi")
	s.run(on(withClaim(podSpec("pod", idle...), "data"), "node-1")).delete()
	s.untilRooms("the room on node-1 alone has shrunk", func(rooms map[string]int64) bool {
		return rooms["node-1"] <= before["node-1"]-gibibyte && rooms["node-2"] > before["node-2"]-gibibyte
	})
	s.deleteClaim("data")
	s.untilRooms("the room on node-1 is back", func(rooms map[string]int64) bool {
		return rooms["node-1"] > before["node-1"]-gibibyte
	})
}

func TestNodeWithRoomIsChosen(t *testing.T) {
	for full, other := range map[string]string{"node-1": "node-2", "node-2": "node-1"} {
		t.Run("not "+full, func(t *testing.T) {
			s := newScene(t)
			rooms := s.untilRooms("there is room on each node", func(rooms map[string]int64) bool {
				return rooms["node-1"] > 2*gibibyte && rooms["node-2"] > 2*gibibyte
			})
			s.claim("filler", fmt.Sprint(rooms[full]-gibibyte/2))
			s.run(on(withClaim(podSpec("filler", idle...), "filler"), full))
			s.untilRooms(full+" is full", func(rooms map[string]int64) bool { return rooms[full] < gibibyte })

			s.claim("data", "1Gi")
			if got := s.run(withClaim(podSpec("pod", idle...), "data")).node(); got != other {
				t.Errorf("the pod runs on %s, want %s", got, other)
			}
			s.claim("huge", "1Ti")
			s.start(withClaim(podSpec("huge", idle...), "huge")).untilIs("has no node for want of room", func(pod *corev1.Pod) bool {
				return strings.Contains(unschedulable(pod), "enough free storage")
			})
		})
	}
}
