package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// distributions are the overlays for which kubelet, the container runtime, or what is
// allowed is other than elsewhere, by what their documentation says.
var distributions = map[string]struct{ kubelet, socket string }{
	k3s:       {"/var/lib/kubelet", "/run/k3s/containerd/containerd.sock"},
	microk8s:  {"/var/snap/microk8s/common/var/lib/kubelet", "/var/snap/microk8s/common/run/containerd.sock"},
	k0s:       {"/var/lib/k0s/kubelet", "/run/k0s/containerd.sock"},
	talos:     {"/var/lib/kubelet", runtimeSocket},
	openshift: {"/var/lib/kubelet", "/run/crio/crio.sock"},
}

// socketOf is the socket of the container runtime for which a deployment is made.
func socketOf(dir string) string {
	if distribution, ok := distributions[dir]; ok {
		return distribution.socket
	}
	return runtimeSocket
}

// Every path of kubelet's must be that of the distribution: the endpoint, the directory
// of the registration, and where the sidecars look for the socket. That they are the
// same inside and outside, TestPathsAreTheHosts sees.
func TestKubeletsFolder(t *testing.T) {
	eachPod(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		_, flags := plugin(t, the[appsv1.DaemonSet](t, objects).Spec.Template.Spec)
		kubelet := flags["kubelet-dir"]
		if got, want := flags["endpoint"], "unix://"+kubelet+"/plugins/"+driverName+"/csi.sock"; got != want {
			t.Errorf("--endpoint=%s, expected %s", got, want)
		}
		if got := flags["registration-dir"]; got != "" && got != kubelet+"/plugins_registry" {
			t.Errorf("--registration-dir=%s is not kubelet's", got)
		}
		for _, volume := range pod.Volumes {
			if volume.HostPath != nil && strings.Contains(volume.HostPath.Path, "kubelet") && !isIn(volume.HostPath.Path, kubelet) {
				t.Errorf("volume %s is of %s, which is not in %s", volume.Name, volume.HostPath.Path, kubelet)
			}
		}
	})
	for _, dir := range deployments {
		_, flags := plugin(t, the[appsv1.DaemonSet](t, load(t, dir)).Spec.Template.Spec)
		want := "/var/lib/kubelet"
		if distribution, ok := distributions[dir]; ok {
			want = distribution.kubelet
		}
		if flags["kubelet-dir"] != want {
			t.Errorf("%s: --kubelet-dir=%s, expected %s", dir, flags["kubelet-dir"], want)
		}
	}
}

// The plugin looks for the runtime of each distribution by itself, and there is a
// deployment for each runtime that it knows.
func TestRuntimesAreKnown(t *testing.T) {
	known := knownSockets(t)
	for dir, distribution := range distributions {
		if !slices.Contains(known, distribution.socket) {
			t.Errorf("%s: the plugin does not look for %s", dir, distribution.socket)
		}
	}
	text := read(t, "../docs/deploy.md")
	for _, socket := range known {
		// cri-dockerd's is in /run itself, all of which cannot be mounted there.
		if filepath.Dir(socket) == "/run" {
			continue
		}
		if !slices.ContainsFunc(deployments, func(dir string) bool { return socketOf(dir) == socket }) {
			t.Errorf("there is no deployment for %s", socket)
		}
		if !strings.Contains(text, "`"+filepath.Dir(socket)+"`") {
			t.Errorf("docs/deploy.md does not name the directory of %s", socket)
		}
	}
}

// On Talos kubelet does not see /run as it is, and must not look for the directory.
func TestKubeletMayNotLook(t *testing.T) {
	for _, dir := range deployments {
		for _, volume := range the[appsv1.DaemonSet](t, load(t, dir)).Spec.Template.Spec.Volumes {
			looks := volume.HostPath == nil || *volume.HostPath.Type != corev1.HostPathUnset
			if want := dir != talos || volume.Name != "runtime-dir"; looks != want {
				t.Errorf("%s: kubelet looks for %s: %t", dir, volume.Name, looks)
			}
		}
	}
}

// The machine shows kubelet the directory of the pools.
func TestTalosMachine(t *testing.T) {
	text, err := os.ReadFile(talos + "/machine.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var patch struct {
		Machine struct {
			Kubelet struct {
				ExtraMounts []struct {
					Destination, Type, Source string
					Options                   []string
				}
			}
		}
	}
	if err := yaml.UnmarshalStrict(text, &patch); err != nil {
		t.Fatal(err)
	}
	mounts := patch.Machine.Kubelet.ExtraMounts
	if len(mounts) != 1 || mounts[0].Source != poolsDir || mounts[0].Destination != poolsDir || !slices.Contains(mounts[0].Options, "rshared") {
		t.Errorf("the mounts are %v, expected %s", mounts, poolsDir)
	}
}

// What has the socket of a privileged container must be of its SELinux type, and
// every account whose pods need it must have the constraint.
func TestOpenShift(t *testing.T) {
	objects := load(t, openshift)
	specs := []corev1.PodSpec{the[appsv1.DaemonSet](t, objects).Spec.Template.Spec, the[appsv1.Deployment](t, objects).Spec.Template.Spec}
	allowed := map[string]bool{}
	for _, binding := range bindings(objects) {
		for _, subject := range binding.subjects {
			allowed[subject.Name] = allowed[subject.Name] || binding.role.Name == "system:openshift:scc:privileged"
		}
	}
	for _, pod := range specs {
		if pod.SecurityContext == nil || pod.SecurityContext.SELinuxOptions == nil || pod.SecurityContext.SELinuxOptions.Type != "spc_t" {
			t.Errorf("the pod of %s may not connect to the socket", pod.ServiceAccountName)
		}
		if !allowed[pod.ServiceAccountName] {
			t.Errorf("%s may not have privileged pods", pod.ServiceAccountName)
		}
	}
	space := the[corev1.Namespace](t, objects)
	if selector, ok := space.Annotations["openshift.io/node-selector"]; !ok || selector != "" {
		t.Error("the cluster's node selector keeps the plugin off nodes")
	}
}
