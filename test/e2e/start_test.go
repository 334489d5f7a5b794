package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a volume adds to the start of a pod: a new claim of the driver's, which is
// provisioned first, beside a device of the node that is there already (a static
// local volume), and beside none. They take turns, so that the ratios hold on a noisy
// machine. The figures are printed and nothing is asserted.
func TestStartOfPods(t *testing.T) {
	s := newScene(t)
	on1 := s.nodes()[0]
	s.newDisk(on1).localVolume("local")
	kinds := []struct {
		name string
		spec func(name string) *corev1.Pod
	}{
		{"no volume", func(name string) *corev1.Pod { return podSpec(name, idle...) }},
		{"static local volume", func(name string) *corev1.Pod { return withClaim(podSpec(name, idle...), "local") }},
		{"new claim", func(name string) *corev1.Pod {
			s.claim(name, "64Mi")
			return withClaim(podSpec(name, idle...), name)
		}},
	}
	const rounds = 5
	took := make([][]time.Duration, len(kinds))
	for round := range rounds {
		for i, kind := range kinds {
			took[i] = append(took[i], s.timeStart(on(kind.spec(fmt.Sprintf("pod-%d-%d", i, round)), on1.name)))
		}
	}
	var medians []time.Duration
	for i, kind := range kinds {
		slices.Sort(took[i])
		medians = append(medians, took[i][rounds/2])
		t.Logf("%-20s %5d ms (%d to %d), %.2f of a pod without a volume", kind.name, medians[i].Milliseconds(),
			took[i][0].Milliseconds(), took[i][rounds-1].Milliseconds(), float64(medians[i])/float64(medians[0]))
	}
}

// timeStart returns how long a pod took from when it was made until it was ready, as
// the API server's watch tells. The pod is deleted again.
func (s *scene) timeStart(spec *corev1.Pod) time.Duration {
	s.Helper()
	watch, err := s.kube.CoreV1().Pods(s.namespace).Watch(s.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + spec.Name})
	must(s, err)
	defer watch.Stop()
	begin := time.Now()
	pod := s.start(spec)
	for event := range watch.ResultChan() {
		if now, ok := event.Object.(*corev1.Pod); ok && isReady(now) {
			took := time.Since(begin)
			pod.delete()
			return took
		}
	}
	s.Fatalf("pod %s was not ready", spec.Name)
	return 0
}
