package kubelet_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
)

func TestPathsOfAVolume(t *testing.T) {
	const base = "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices"
	for staging, want := range map[string]string{
		base + "/staging/pvc-1": base + "/publish/pvc-1", base + "/pvc-1/dev": "", "/srv/staging/pvc-1": "", "/staging": "", "": "",
	} {
		if got := kubelet.TargetDir(staging); got != want {
			t.Errorf("%q: got %q, want %q", staging, got, want)
		}
	}
	for path, want := range map[string]bool{
		base + "/publish/pvc-1/uid": true, base + "/publish/pvc-1": false, base + "/pvc-1/dev/uid": false, "/x/publish/pvc-1/uid": false, "pod": false,
	} {
		if got := kubelet.IsTarget(path); got != want {
			t.Errorf("%q: got %t", path, got)
		}
	}
	if got, want := kubelet.MapOf(base+"/publish/pvc-1/uid"), base+"/pvc-1/dev/uid"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
