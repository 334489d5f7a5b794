package e2e

import (
	"context"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// Kubelet asks for the health of a node's pools, and the node's CSINode has what is wrong
// until it is well: here with a filesystem that the pool has for itself meanwhile.
func TestStorageHealthIsShown(t *testing.T) {
	s := newScene(t)
	node := s.nodes()[0]
	d := s.newDisk(node)
	const pool = "/var/lib/rawblock-csi/files"
	mounted := false
	unmount := func() {
		if mounted {
			node.mustShell(s, "umount %s", pool)
			node.killPlugin(s) // It has the filesystem in a mount namespace of its own.
			mounted = false
		}
	}
	t.Cleanup(unmount)
	node.mustShell(s, "mke2fs -q -t ext4 %[1]s && mount -o errors=continue %[1]s %[2]s", d.loop, pool)
	mounted = true
	node.killPlugin(s) // The next one has the pool on that filesystem.

	node.mustShell(s, "echo planted > /sys/fs/ext4/%s/trigger_fs_error", filepath.Base(d.loop))
	s.until("the pool has errors", func(ctx context.Context) (bool, error) {
		found, err := s.storageHealth(ctx, node)
		return len(found) == 1 && found[0].Status == storagev1.StorageDegraded && found[0].Reason == "PoolErrors" && found[0].Message != "", err
	})
	unmount()
	s.until("the pool is well", func(ctx context.Context) (bool, error) {
		found, err := s.storageHealth(ctx, node)
		return len(found) == 0, err
	})
}

// storageHealth is what the node's CSINode has of the plugin's pools.
func (s *scene) storageHealth(ctx context.Context, n node) ([]storagev1.StorageHealthCondition, error) {
	seen, err := s.kube.StorageV1().CSINodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for _, health := range seen.Status.StorageHealth {
		if health.Name == driverName {
			return health.HealthConditions, nil
		}
	}
	return nil, nil
}

func healthOf(pod *corev1.Pod) []corev1.VolumeHealthCondition {
	for _, health := range pod.Status.VolumeHealth {
		if health.Name == "disk" {
			return health.HealthConditions
		}
	}
	return nil
}
