package deploy_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// maxSocketPath is the length of the longest path of a unix socket (unix(7)).
const maxSocketPath = 107

// volumeDevices is where kubelet has block volumes, in its directory (pkg/kubelet).
const volumeDevices = "plugins/kubernetes.io/csi/volumeDevices"

// hostPath returns where on the host a path in the container is, by the deepest
// mount above it, and that mount. It is "" where the path is not the host's.
func hostPath(pod corev1.PodSpec, container corev1.Container, path string) (string, corev1.VolumeMount) {
	var deepest corev1.VolumeMount
	for _, mount := range container.VolumeMounts {
		if isIn(path, mount.MountPath) && len(mount.MountPath) > len(deepest.MountPath) {
			deepest = mount
		}
	}
	for _, volume := range pod.Volumes {
		if volume.Name == deepest.Name && volume.HostPath != nil {
			return filepath.Join(volume.HostPath.Path, strings.TrimPrefix(path, deepest.MountPath)), deepest
		}
	}
	return "", deepest
}

func isIn(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func TestMountsAndVolumesMatch(t *testing.T) {
	eachPod(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		used := map[string]bool{}
		for _, volume := range pod.Volumes {
			used[volume.Name] = false
			if volume.ConfigMap != nil && volume.ConfigMap.Name != the[corev1.ConfigMap](t, objects).Name {
				t.Errorf("volume %s is of the ConfigMap %s, which is not rendered", volume.Name, volume.ConfigMap.Name)
			}
		}
		for _, container := range pod.Containers {
			for _, mount := range container.VolumeMounts {
				if _, ok := used[mount.Name]; !ok {
					t.Errorf("container %s mounts %s, which is no volume", container.Name, mount.Name)
				}
				used[mount.Name] = true
			}
			// The runtime makes this file; on the host, if that is where it lies.
			message := container.TerminationMessagePath
			if message == "" {
				message = corev1.TerminationMessagePathDefault
			}
			if host, _ := hostPath(pod, container, message); host != "" {
				t.Errorf("container %s: the termination message would be made on the host, at %s", container.Name, host)
			}
		}
		for name, isUsed := range used {
			if !isUsed {
				t.Errorf("no container mounts the volume %s", name)
			}
		}
	})
}

// kubelet is told these paths, or tells them: inside and outside they must be
// the same.
func TestPathsAreTheHosts(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		container, flags := plugin(t, pod)
		socket, ok := strings.CutPrefix(flags["endpoint"], "unix://")
		if !ok || len(socket) > maxSocketPath {
			t.Errorf("--endpoint=%s is not a unix socket of at most %d bytes", flags["endpoint"], maxSocketPath)
		}
		if name := filepath.Base(filepath.Dir(socket)); name != driverName {
			t.Errorf("the directory of the socket is %s, expected %s", name, driverName)
		}
		devices := filepath.Join(flags["kubelet-dir"], volumeDevices)
		paths := []string{socket, devices, "/dev"}
		if flags["registration-dir"] != "" {
			paths = append(paths, flags["registration-dir"])
		}
		for _, path := range paths {
			if host, _ := hostPath(pod, container, path); host != path {
				t.Errorf("%s in the container is %q on the host", path, host)
			}
		}
		_, mount := hostPath(pod, container, devices)
		if mount.MountPropagation == nil || *mount.MountPropagation != corev1.MountPropagationBidirectional {
			t.Errorf("what is mounted in %s does not reach the host", devices)
		}
		for _, path := range []string{socket, flags["registration-dir"]} {
			if path != "" && !isIn(path, flags["kubelet-dir"]) {
				t.Errorf("%s is not in --kubelet-dir", path)
			}
		}
		checkConfigPath(t, objects, pod, container, flags["config"])
	})
}

// Kubelet's directory has the secrets of all pods. No container has more of it than a
// socket's directory, and where block volumes are.
func TestOfKubeletsDirectoryOnlyWhatIsNeeded(t *testing.T) {
	eachPod(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		_, flags := plugin(t, the[appsv1.DaemonSet](t, objects).Spec.Template.Spec)
		dir := flags["kubelet-dir"]
		needed := []string{filepath.Join(dir, "plugins", driverName), filepath.Join(dir, "plugins_registry"), filepath.Join(dir, volumeDevices)}
		for _, volume := range pod.Volumes {
			if volume.HostPath == nil || slices.Contains(needed, volume.HostPath.Path) {
				continue
			}
			if isIn(volume.HostPath.Path, dir) || isIn(dir, volume.HostPath.Path) {
				t.Errorf("the volume %s has %s", volume.Name, volume.HostPath.Path)
			}
		}
		for _, container := range pod.Containers {
			for _, mount := range container.VolumeMounts {
				wanted := mount.MountPath == needed[2]
				if isIn(mount.MountPath, dir) && (mount.MountPropagation != nil) != wanted {
					t.Errorf("container %s: %s has mount propagation: %t", container.Name, mount.MountPath, !wanted)
				}
			}
		}
	})
}

func checkConfigPath(t *testing.T, objects []any, pod corev1.PodSpec, container corev1.Container, path string) {
	t.Helper()
	configMap := the[corev1.ConfigMap](t, objects)
	if _, ok := configMap.Data[filepath.Base(path)]; !ok {
		t.Errorf("--config=%s: the ConfigMap has no such key", path)
	}
	for _, mount := range container.VolumeMounts {
		for _, volume := range pod.Volumes {
			if volume.Name == mount.Name && volume.ConfigMap != nil && mount.MountPath == filepath.Dir(path) {
				return
			}
		}
	}
	t.Errorf("--config=%s: the ConfigMap is not mounted there", path)
}

// The records must outlive the container, and not the boot.
func TestStateDirIsTheHosts(t *testing.T) {
	eachDeployment(t, func(t *testing.T, _ []any, pod corev1.PodSpec) {
		container, flags := plugin(t, pod)
		dir, mount := hostPath(pod, container, flags["state-dir"])
		if dir == "" || dir != flags["state-dir"] || !isIn(dir, "/run") {
			t.Errorf("--state-dir=%s is not a directory of the host below /run, mounted at its own path", flags["state-dir"])
		}
		if mount.ReadOnly {
			t.Errorf("nothing can be recorded in --state-dir=%s", flags["state-dir"])
		}
		if mode := mount.MountPropagation; mode != nil && *mode != corev1.MountPropagationNone {
			t.Errorf("--state-dir=%s has mount propagation %s, which it has no use for", flags["state-dir"], *mode)
		}
	})
}

// poolsDir is the directory of the host for file pools.
const poolsDir = "/var/lib/rawblock-csi"

// Volumes must outlive the container.
func TestFilePoolsAreTheHosts(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		container, _ := plugin(t, pod)
		for _, pool := range settingsOf(t, objects).Pools {
			if pool.File == nil {
				continue
			}
			dir, mount := hostPath(pod, container, pool.File.Directory)
			if dir != pool.File.Directory || !isIn(dir, poolsDir) || mount.ReadOnly {
				t.Errorf("pool %s: %s is not a directory of the host below %s, mounted at its own path for writing", pool.Name, pool.File.Directory, poolsDir)
			}
			if mount.MountPropagation != nil {
				t.Errorf("pool %s has mount propagation %s, which it has no use for", pool.Name, *mount.MountPropagation)
			}
		}
	})
}

// kubelet makes its own directories, but for that of block volumes, which it makes with the
// first one. The others must be made by whoever comes first: the one for records is gone
// after each boot, the one of file pools is not there before the first start, the one of the
// socket not where a sidecar is started before the plugin, and that of the system bus not on
// every host.
func TestFoldersAreMade(t *testing.T) {
	eachPod(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		_, flags := plugin(t, the[appsv1.DaemonSet](t, objects).Spec.Template.Spec)
		ours := []string{poolsDir, systemBusDir, flags["state-dir"], filepath.Dir(strings.TrimPrefix(flags["endpoint"], "unix://")), filepath.Join(flags["kubelet-dir"], volumeDevices)}
		for _, volume := range pod.Volumes {
			if volume.HostPath == nil {
				continue
			}
			want := corev1.HostPathDirectory
			if volume.Name == "runtime-dir" && volume.HostPath.Type != nil && *volume.HostPath.Type == corev1.HostPathUnset {
				continue // Talos alone: see TestKubeletMayNotLook.
			}
			if slices.Contains(ours, volume.HostPath.Path) {
				want = corev1.HostPathDirectoryOrCreate
			}
			if got := volume.HostPath.Type; got == nil || *got != want {
				t.Errorf("the volume %s is not of type %s", volume.Name, want)
			}
		}
	})
}

// The runtime's own mounts would reach the host with each start of the container.
func TestNothingIsMountedBelowABidirectionalMount(t *testing.T) {
	eachContainer(t, func(t *testing.T, _ corev1.PodSpec, container corev1.Container) {
		for _, above := range container.VolumeMounts {
			if above.MountPropagation == nil || *above.MountPropagation != corev1.MountPropagationBidirectional {
				continue
			}
			for _, mount := range container.VolumeMounts {
				if mount.Name != above.Name && isIn(mount.MountPath, above.MountPath) {
					t.Errorf("%s is mounted below %s, so on the host too", mount.MountPath, above.MountPath)
				}
			}
		}
	})
}
