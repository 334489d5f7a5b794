package driver

import (
	"path/filepath"

	"k8s.io/klog/v2"
)

// Keys that kubelet adds to volume_context where the CSIDriver has podInfoOnMount
// (https://kubernetes-csi.github.io/docs/pod-info.html).
const (
	podName      = "csi.storage.k8s.io/pod.name"
	podNamespace = "csi.storage.k8s.io/pod.namespace"
	podUID       = "csi.storage.k8s.io/pod.uid"
)

// subject is what a call is about, as far as its request tells.
type subject struct {
	volume, snapshot string
	// name is that of the volume or snapshot to be made.
	name   string
	target string
	// pod is NAMESPACE/NAME, podUID the UID.
	pod, podUID string
}

func subjectOf(req any) subject {
	var s subject
	if named, ok := req.(interface{ GetVolumeId() string }); ok {
		s.volume = named.GetVolumeId()
	}
	if named, ok := req.(interface{ GetSnapshotId() string }); ok {
		s.snapshot = named.GetSnapshotId()
	}
	if named, ok := req.(interface{ GetName() string }); ok {
		s.name = named.GetName()
	}
	if placed, ok := req.(interface{ GetTargetPath() string }); ok {
		s.target = placed.GetTargetPath()
		s.podUID = podOfTarget(s.target)
	}
	if described, ok := req.(interface{ GetVolumeContext() map[string]string }); ok {
		attributes := described.GetVolumeContext()
		if name := attributes[podName]; name != "" {
			s.pod = attributes[podNamespace] + "/" + name
		}
		if uid := attributes[podUID]; uid != "" {
			s.podUID = uid
		}
	}
	return s
}

// podOfTarget returns the UID of the pod that a target path is for, or "": kubelet's
// targets of raw volumes end in publish/PV/UID (k8s.io/kubernetes/pkg/volume/csi,
// getPublishDir).
func podOfTarget(target string) string {
	if filepath.Base(filepath.Dir(filepath.Dir(target))) != "publish" {
		return ""
	}
	return filepath.Base(target)
}

func (s subject) addTo(logger klog.Logger) klog.Logger {
	for _, field := range []struct{ key, value string }{
		{"volume", s.volume}, {"snapshot", s.snapshot}, {"name", s.name}, {"pod", s.pod}, {"podUID", s.podUID},
	} {
		if field.value != "" {
			logger = logger.WithValues(field.key, field.value)
		}
	}
	return logger
}
