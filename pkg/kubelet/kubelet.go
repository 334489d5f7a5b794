// Package kubelet reads what kubelet has on this node of raw block volumes: directories,
// mounts, links, and what it noted of each volume. It changes nothing.
//
// The layout is that of Kubernetes 1.37 (pkg/volume/csi/csi_block.go and
// pkg/volume/util/volumepathhandler), which has been the same since 1.14:
//
//	plugins/kubernetes.io/csi/volumeDevices/NAME/data/vol_data.json  what it noted
//	plugins/kubernetes.io/csi/volumeDevices/publish/NAME/POD         where the driver publishes
//	plugins/kubernetes.io/csi/volumeDevices/NAME/dev/POD             its own mount of that
//	pods/POD/volumeDevices/kubernetes.io~csi/NAME                    a link to what is published
//
// NAME is that of the PersistentVolume, POD the UID of the pod. A loop device over
// its own mount, which it makes with losetup, keeps the device from being taken away.
//
// Drivers share the directories: a volume is one's own only if kubelet noted so, or what
// is published there is.
package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"k8s.io/mount-utils"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Volume is a raw block volume, of any driver.
type Volume struct {
	// Name is that of its PersistentVolume.
	Name string
	// Driver and ID are the name of the driver, and its ID of the volume (volumeHandle),
	// as kubelet noted them: empty where the note is missing.
	Driver, ID string
	// Uses are the pods that have it, in the order of their UIDs.
	Uses []Use
}

// Use is what there is of a volume for one pod.
type Use struct {
	// Pod is the UID of the pod, State whether kubelet still has a directory for it.
	Pod   string
	State PodState
	// Target is where the driver publishes, Map kubelet's own mount.
	Target, Map Place
	// Link is the path of kubelet's link for the pod, empty where there is none.
	Link string
}

// PodState says whether kubelet still has a pod.
type PodState int

// The states. PodUnseen: nobody can tell, since the pods cannot be seen from here.
const (
	PodUnseen PodState = iota
	PodThere
	PodGone
)

// Place is a path where a device may be mounted.
type Place struct {
	Path string
	// Exists says that there is anything, Empty that it is an empty file and nothing
	// is mounted.
	Exists, Empty bool
	// Shows is the number of the device that is mounted topmost, if IsDevice says that
	// one is.
	Shows    linux.DeviceNumber
	IsDevice bool
	// Mounts are what is mounted there, from the lowest to the topmost: the device of
	// the filesystem and the path in it.
	Mounts []string
}

// ErrNotKubelet says that a directory is not kubelet's.
var ErrNotKubelet = fmt.Errorf("%w: there are neither pods nor block volumes in it", volume.ErrPrecondition)

// VolumeDevices is the directory of raw block volumes in kubelet's. All that the plugin is
// asked to do happens in it, so its container has no other part of kubelet's for mounts.
const VolumeDevices = "plugins/kubernetes.io/csi/volumeDevices"

// Directories of that directory which are not the names of volumes.
const (
	publishDir = "publish"
	stagingDir = "staging"
)

// Volumes returns what kubelet has in its directory (--root-dir), in the order of the
// names. Links on the way to the directory are followed. Errors: ErrNotKubelet.
func Volumes(dir string) ([]Volume, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("kubelet's directory: %w", err)
	}
	pods, err := podsOf(dir)
	if err != nil {
		return nil, fmt.Errorf("kubelet's directory: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, VolumeDevices)); err != nil && pods == "" {
		return nil, fmt.Errorf("kubelet's directory %s: %w; set --kubelet-dir to kubelet's --root-dir", dir, ErrNotKubelet)
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return nil, err
	}
	names, err := volumeNames(dir)
	if err != nil {
		return nil, err
	}
	var found []Volume
	for _, name := range names {
		one, err := readVolume(dir, pods, name, mounts)
		if err != nil {
			return nil, fmt.Errorf("what kubelet has of volume %s: %w", name, err)
		}
		found = append(found, one)
	}
	return found, nil
}

// podsOf returns the directory of kubelet's pods, or nothing where it cannot be seen.
// Their secrets are in it, so the plugin's container does not have it. Where that has the host's
// processes, it can be seen through the first of them.
func podsOf(dir string) (string, error) {
	for _, root := range []string{"/", "/proc/1/root"} {
		pods := filepath.Join(root, dir, "pods")
		_, err := os.Stat(pods)
		if err == nil {
			return pods, nil
		}
		if root == "/" && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// mountsBelow returns what is mounted on each path below a directory, from the lowest.
func mountsBelow(dir string) (map[string][]string, error) {
	table, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	found := map[string][]string{}
	for _, m := range table {
		if strings.HasPrefix(m.MountPoint, dir+"/") {
			found[m.MountPoint] = append(found[m.MountPoint], fmt.Sprintf("%d:%d%s", m.Major, m.Minor, m.Root))
		}
	}
	return found, nil
}

func volumeNames(dir string) ([]string, error) {
	var names []string
	for _, part := range []string{VolumeDevices, filepath.Join(VolumeDevices, publishDir)} {
		entries, err := readNames(filepath.Join(dir, part))
		if err != nil {
			return nil, err
		}
		names = append(names, entries...)
	}
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == publishDir || name == stagingDir })
	return names, nil
}

// TargetDir returns the directory of the targets of the volume that kubelet stages at a
// path: they are named after the pods. It is empty for a path that is not kubelet's.
func TargetDir(staging string) string {
	above, name := filepath.Split(staging)
	base := filepath.Dir(filepath.Clean(above))
	if filepath.Base(above) != stagingDir || !isVolumeDevices(base) {
		return ""
	}
	return filepath.Join(base, publishDir, name)
}

// IsTarget reports whether a path is one where kubelet has a driver publish: then all
// targets of the volume are beside it.
func IsTarget(path string) bool {
	above := filepath.Dir(filepath.Dir(path))
	return filepath.Base(above) == publishDir && isVolumeDevices(filepath.Dir(above))
}

// MapOf returns the path where kubelet mounts what is published at a target of its own.
func MapOf(target string) string {
	dir, pod := filepath.Split(filepath.Clean(target))
	above, name := filepath.Split(filepath.Clean(dir))
	return filepath.Join(filepath.Dir(filepath.Clean(above)), name, "dev", pod)
}

func isVolumeDevices(path string) bool { return strings.HasSuffix(path, "/"+VolumeDevices) }

func readNames(dir string) ([]string, error) {
	names, err := linux.ReadNames(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	return names, err
}

// note is what kubelet notes of a volume (volDataKey in pkg/volume/csi/csi_mounter.go).
type note struct {
	Driver string `json:"driverName"`
	Handle string `json:"volumeHandle"`
}

func readVolume(dir, podsDir, name string, mounts map[string][]string) (Volume, error) {
	base := filepath.Join(dir, VolumeDevices)
	found := Volume{Name: name}
	text, err := os.ReadFile(filepath.Join(base, name, "data/vol_data.json"))
	if err == nil {
		var noted note
		if err := json.Unmarshal(text, &noted); err != nil {
			return Volume{}, fmt.Errorf("its note: %w", err)
		}
		found.Driver, found.ID = noted.Driver, noted.Handle
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return Volume{}, err
	}
	targets, maps := filepath.Join(base, publishDir, name), filepath.Join(base, name, "dev")
	pods, err := readNames(targets)
	if err != nil {
		return Volume{}, err
	}
	mapped, err := readNames(maps)
	if err != nil {
		return Volume{}, err
	}
	pods = append(pods, mapped...)
	slices.Sort(pods)
	for _, pod := range slices.Compact(pods) {
		use, err := readUse(podsDir, name, pod, filepath.Join(targets, pod), filepath.Join(maps, pod), mounts)
		if err != nil {
			return Volume{}, err
		}
		found.Uses = append(found.Uses, use)
	}
	return found, nil
}

func readUse(podsDir, name, pod, target, mapping string, mounts map[string][]string) (use Use, err error) {
	use.Pod = pod
	if podsDir != "" {
		_, err = os.Stat(filepath.Join(podsDir, pod))
		switch {
		case err == nil:
			use.State = PodThere
		case errors.Is(err, fs.ErrNotExist):
			use.State = PodGone
		default:
			return Use{}, err
		}
		link := filepath.Join(podsDir, pod, "volumeDevices/kubernetes.io~csi", name)
		if _, err := os.Lstat(link); err == nil {
			use.Link = link
		}
	}
	if use.Target, err = Look(target, mounts[target]); err != nil {
		return Use{}, err
	}
	use.Map, err = Look(mapping, mounts[mapping])
	return use, err
}

// Look looks at a path, on which the mounts are. Nothing is opened.
func Look(path string, mounts []string) (Place, error) {
	place := Place{Path: path, Mounts: mounts}
	info, err := linux.StatPath(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return place, nil
	}
	if err != nil {
		return Place{}, err
	}
	place.Exists = true
	place.Empty = info.Type == 0 && info.Size == 0 && !info.MountRoot
	if info.MountRoot && info.IsBlockDevice() {
		place.Shows, place.IsDevice = info.Device, true
	}
	return place, nil
}
