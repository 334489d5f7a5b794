package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A volume whose node never comes back is nobody's to delete: it stays until the commands
// of the guide take it away.
func TestVolumeOfALostNode(t *testing.T) {
	s := newScene(t)
	spec := s.claimSpec("64Mi", corev1.ReadWriteOnce)
	spec.VolumeName = s.namespace
	volumes := s.kube.CoreV1().PersistentVolumes()
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        s.namespace,
			Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": driverName},
			Finalizers:  []string{"external-provisioner.volume.kubernetes.io/finalizer"},
		},
		Spec: corev1.PersistentVolumeSpec{
			VolumeMode:                    spec.VolumeMode,
			StorageClassName:              *spec.StorageClassName,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")},
			AccessModes:                   spec.AccessModes,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:                      &corev1.ObjectReference{Namespace: s.namespace, Name: "lost"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: driverName, VolumeHandle: "files/" + s.namespace + "@lost-node",
			}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: hostnameKey, Operator: corev1.NodeSelectorOpIn, Values: []string{"lost-node"}},
				}}},
			}},
		},
	}
	_, err := volumes.Create(t.Context(), volume, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		runStep(t, "", "kubectl delete pv --ignore-not-found --wait=false "+s.namespace+"; kubectl patch pv "+s.namespace+` -p '{"metadata":{"finalizers":null}}' || true`)
	})
	s.makeClaim("lost", spec)
	s.until("the claim is bound", func(ctx context.Context) (bool, error) {
		claim, err := s.getClaim(ctx, "lost")
		return err == nil && claim.Status.Phase == corev1.ClaimBound, err
	})
	must(t, s.kube.CoreV1().PersistentVolumeClaims(s.namespace).Delete(t.Context(), "lost", metav1.DeleteOptions{}))
	s.until("the volume is released", func(ctx context.Context) (bool, error) {
		found, err := volumes.Get(ctx, s.namespace, metav1.GetOptions{})
		return err == nil && found.Status.Phase == corev1.VolumeReleased, err
	})
	remove, release, _ := strings.Cut(strings.ReplaceAll(marked(t, "deploy.md", "TestVolumeOfALostNode")[0], " PV ", " "+s.namespace+" "), "\n")
	runStep(t, "", remove)
	found, err := volumes.Get(t.Context(), s.namespace, metav1.GetOptions{})
	if err != nil || found.DeletionTimestamp == nil {
		t.Fatalf("after %s: %v, %v", remove, found, err)
	}
	runStep(t, "", release)
	s.until("the volume is gone", func(ctx context.Context) (bool, error) {
		_, err := volumes.Get(ctx, s.namespace, metav1.GetOptions{})
		return err != nil, ignoreMissing(err)
	})
}
