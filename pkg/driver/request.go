package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/mount-utils"

	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func checkVolumeID(id string) error {
	if id == "" || strings.Contains(id, "\x00") {
		return fmt.Errorf("%w: volume_id %q is empty or has a NUL byte", volume.ErrInvalid, id)
	}
	return nil
}

// parseCapability returns the access mode of a capability that this driver serves.
func parseCapability(capability *csi.VolumeCapability) (volume.AccessMode, error) {
	if capability == nil {
		return "", fmt.Errorf("%w: volume_capability is missing", volume.ErrInvalid)
	}
	switch {
	case capability.GetMount() != nil:
		return "", fmt.Errorf("%w: volume_capability asks for a mounted filesystem, but this driver serves raw block volumes: set volumeMode: Block in the PersistentVolumeClaim and PersistentVolume, and use volumeDevices in the pod",
			volume.ErrPrecondition)
	case capability.GetBlock() == nil:
		return "", fmt.Errorf("%w: volume_capability has no access_type; this driver serves block", volume.ErrInvalid)
	}
	return volume.ParseAccessMode(capability.GetAccessMode().GetMode().String())
}

// hashArguments stands for the contexts of a publish request, to tell whether a
// repeated request is the same one. Kubelet's own keys are left out: pod names
// and tokens in them differ from call to call.
func hashArguments(contexts ...map[string]string) string {
	hash := sha256.New()
	for _, values := range contexts {
		for _, key := range slices.Sorted(maps.Keys(values)) {
			if strings.HasPrefix(key, "csi.storage.k8s.io/") {
				continue
			}
			hash.Write(fmt.Appendf(nil, "%q=%q\n", key, values[key]))
		}
		hash.Write([]byte("\n"))
	}
	return hex.EncodeToString(hash.Sum(nil)[:8])
}

// kubeletDir is the directory that all paths of requests lie in. It may be a link,
// in which case kubelet may send its paths with the link or without.
type kubeletDir struct {
	path, resolved string
	// part is the only part of it that is kubelet's, if not all of it is.
	part string
}

func newKubeletDir(path string) (kubeletDir, error) {
	if !filepath.IsAbs(path) {
		return kubeletDir{}, fmt.Errorf("%w: the kubelet directory %q is not an absolute path", volume.ErrInvalid, path)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return kubeletDir{}, fmt.Errorf("resolve the kubelet directory; make it, or set --kubelet-dir to kubelet's --root-dir: %w", err)
	}
	return kubeletDir{path: filepath.Clean(path), resolved: resolved}, nil
}

// narrow finds out, once, what is kubelet's in a container that has less of the directory
// than all: what is mounted where the block volumes are. Beside that the container's own
// layer is, where nothing may be mounted, nor missed when it is to be taken away. A call
// must not read the mount table, which grows with the volumes.
func (d *kubeletDir) narrow(mounts []mount.MountInfo) {
	if at := mountOf(d.devices(), mounts).MountPoint; isBelow(at, d.resolved) {
		d.part = at
	}
}

// devices is where kubelet has block volumes, as the mount table names it.
func (d kubeletDir) devices() string { return filepath.Join(d.resolved, kubelet.VolumeDevices) }

// check returns an error unless the path of a request's field lies in the directory, and
// in the part of it that is kubelet's.
func (d kubeletDir) check(field, path string) error {
	switch {
	case path == "":
		return fmt.Errorf("%w: %s is missing", volume.ErrInvalid, field)
	case !filepath.IsAbs(path):
		return fmt.Errorf("%w: %s %q is not an absolute path", volume.ErrInvalid, field, path)
	case filepath.Clean(path) != path || strings.Contains(path, "\x00"):
		return fmt.Errorf("%w: %s %q has . or .. elements, needless slashes or a NUL byte; send the clean path", volume.ErrInvalid, field, path)
	case !isBelow(path, d.path) && !isBelow(path, d.resolved):
		return fmt.Errorf("%w: %s %q is not below the kubelet directory %s; set --kubelet-dir to kubelet's --root-dir",
			volume.ErrInvalid, field, path, d.path)
	case d.part != "" && !isBelow(d.resolve(path), d.part):
		return fmt.Errorf("%w: %s %q is not below %s, which is all that the plugin's container has of the kubelet directory; mount the directory of the host too, with mountPropagation: Bidirectional",
			volume.ErrPrecondition, field, path, d.part)
	}
	return nil
}

// resolve returns a path below the directory without the link to the directory.
func (d kubeletDir) resolve(path string) string {
	if isBelow(path, d.path) {
		return filepath.Join(d.resolved, strings.TrimPrefix(path, d.path))
	}
	return path
}

func isBelow(path, dir string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
