package e2e

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// claimSpec asks the test's class for a raw block volume.
func (s *scene) claimSpec(size string, mode corev1.PersistentVolumeAccessMode) corev1.PersistentVolumeClaimSpec {
	block := corev1.PersistentVolumeBlock
	return corev1.PersistentVolumeClaimSpec{
		VolumeMode:       &block,
		StorageClassName: &s.namespace,
		AccessModes:      []corev1.PersistentVolumeAccessMode{mode},
		Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}
}

// claim makes a claim that one node may use.
func (s *scene) claim(name, size string) {
	s.Helper()
	s.makeClaim(name, s.claimSpec(size, corev1.ReadWriteOnce))
}

func (s *scene) makeClaim(name string, spec corev1.PersistentVolumeClaimSpec) {
	s.Helper()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	_, err := s.kube.CoreV1().PersistentVolumeClaims(s.namespace).Create(s.Context(), claim, metav1.CreateOptions{})
	must(s, err)
}

// deleteClaim deletes a claim, and waits until its volume is gone too.
func (s *scene) deleteClaim(name string) {
	s.Helper()
	claim, err := s.getClaim(s.Context(), name)
	must(s, err)
	must(s, s.kube.CoreV1().PersistentVolumeClaims(s.namespace).Delete(s.Context(), name, metav1.DeleteOptions{}))
	s.until("the volume of claim "+name+" is gone", func(ctx context.Context) (bool, error) {
		volumes, err := s.volumes(ctx)
		for _, volume := range volumes {
			if volume.Spec.ClaimRef.UID == claim.UID {
				return false, err
			}
		}
		return err == nil, err
	})
}

func (s *scene) getClaim(ctx context.Context, name string) (*corev1.PersistentVolumeClaim, error) {
	return s.kube.CoreV1().PersistentVolumeClaims(s.namespace).Get(ctx, name, metav1.GetOptions{})
}

// grow raises what a claim asks for.
func (s *scene) grow(name, size string) {
	s.Helper()
	claim, err := s.getClaim(s.Context(), name)
	must(s, err)
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
	_, err = s.kube.CoreV1().PersistentVolumeClaims(s.namespace).Update(s.Context(), claim, metav1.UpdateOptions{})
	must(s, err)
}
