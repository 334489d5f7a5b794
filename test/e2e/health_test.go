package e2e

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Kubelet asks for the health of volumes, and what is wrong stands in the status of the
// pod, until it is well. The cluster has the feature gate for it.
func TestHealthIsShown(t *testing.T) {
	s := newScene(t)
	s.claim("data", "64Mi")
	pod := s.run(withClaim(podSpec("pod", idle...), "data"))
	node := node{pod.node()}
	data := node.mustShell(s, "ls /var/lib/rawblock-csi/files/volumes/*/data")
	node.mustShell(s, "truncate -s 1M %s", data)
	pod.untilIs("has lost data", func(now *corev1.Pod) bool {
		found := healthOf(now)
		return len(found) == 1 && found[0].Status == corev1.VolumeHealthDataLoss && found[0].Reason == "SizeShrank" && found[0].Message != ""
	})
	node.mustShell(s, "truncate -s 64M %s", data)
	pod.untilIs("is well", func(now *corev1.Pod) bool { return len(healthOf(now)) == 0 })
}

func healthOf(pod *corev1.Pod) []corev1.VolumeHealthCondition {
	for _, health := range pod.Status.VolumeHealth {
		if health.Name == "disk" {
			return health.HealthConditions
		}
	}
	return nil
}
