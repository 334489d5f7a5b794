package e2e

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const snapshotGroup = "snapshot.storage.k8s.io"

func snapshotResource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: snapshotGroup, Version: "v1", Resource: name}
}

// makeSnapshotClass makes one for the test, of the same name as its other class.
func (s *scene) makeSnapshotClass() {
	s.Helper()
	classes := s.dynamic.Resource(snapshotResource("volumesnapshotclasses"))
	_, err := classes.Create(s.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion":     snapshotGroup + "/v1",
		"kind":           "VolumeSnapshotClass",
		"metadata":       map[string]any{"name": s.namespace},
		"driver":         driverName,
		"deletionPolicy": "Delete",
	}}, metav1.CreateOptions{})
	must(s, err)
	s.Cleanup(func() { must(s, classes.Delete(context.Background(), s.namespace, metav1.DeleteOptions{})) })
}

// snapshot makes a snapshot of a claim's volume, and waits until it can be used.
func (s *scene) snapshot(name, claim string) {
	s.Helper()
	snapshots := s.dynamic.Resource(snapshotResource("volumesnapshots")).Namespace(s.namespace)
	_, err := snapshots.Create(s.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": snapshotGroup + "/v1",
		"kind":       "VolumeSnapshot",
		"metadata":   map[string]any{"name": name},
		"spec": map[string]any{
			"volumeSnapshotClassName": s.namespace,
			"source":                  map[string]any{"persistentVolumeClaimName": claim},
		},
	}}, metav1.CreateOptions{})
	must(s, err)
	s.until("snapshot "+name+" is ready", func(ctx context.Context) (bool, error) {
		current, err := snapshots.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		ready, _, _ := unstructured.NestedBool(current.Object, "status", "readyToUse") // Not there: not ready.
		if !ready {
			return false, fmt.Errorf("its status is %v", current.Object["status"])
		}
		return true, nil
	})
}

// copyOf asks for a volume that is made of something.
func (s *scene) copyOf(size, kind, name string) corev1.PersistentVolumeClaimSpec {
	spec := s.claimSpec(size, corev1.ReadWriteOnce)
	spec.DataSource = &corev1.TypedLocalObjectReference{Kind: kind, Name: name}
	if kind == "VolumeSnapshot" {
		group := snapshotGroup
		spec.DataSource.APIGroup = &group
	}
	return spec
}

func TestSnapshotIsRestored(t *testing.T) {
	s := newScene(t)
	s.makeSnapshotClass()
	s.claim("data", "64Mi")
	source := s.run(withClaim(podSpec("source", idle...), "data"))
	sum := source.fill(devicePath)
	s.snapshot("then", "data")
	later := source.fill(devicePath)

	s.makeClaim("restored", s.copyOf("128Mi", "VolumeSnapshot", "then"))
	restored := s.run(on(withClaim(podSpec("restored", idle...), "restored"), source.node()))
	restored.wantSum(devicePath, sum)
	if got := restored.size(devicePath); got != "134217728" {
		t.Errorf("the restored device has %s bytes, want 128Mi", got)
	}
	restored.fill(devicePath)
	source.wantSum(devicePath, later)

	// The snapshot needs neither its volume nor what was made of it.
	restored.delete()
	source.delete()
	s.deleteClaim("restored")
	s.deleteClaim("data")
	s.makeClaim("again", s.copyOf("64Mi", "VolumeSnapshot", "then"))
	s.run(withClaim(podSpec("again", idle...), "again")).wantSum(devicePath, sum)
}

func TestClone(t *testing.T) {
	s := newScene(t)
	s.claim("data", "64Mi")
	source := s.run(withClaim(podSpec("source", idle...), "data"))
	sum := source.fill(devicePath)
	s.makeClaim("clone", s.copyOf("64Mi", "PersistentVolumeClaim", "data"))
	clone := s.run(on(withClaim(podSpec("clone", idle...), "clone"), source.node()))
	clone.wantSum(devicePath, sum)
	clone.fill(devicePath)
	source.wantSum(devicePath, sum)
}
