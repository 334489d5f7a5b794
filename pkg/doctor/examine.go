package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// examination judges one survey.
type examination struct {
	*Doctor
	survey *inspect.Survey
	staged map[string]publish.Record
	// targets are the volumes by the targets that are recorded.
	targets map[string]string
	// mounted are the numbers of the devices that are mounted anywhere in kubelet's
	// directory, or at a target that is recorded, and maps the paths of kubelet's own mounts.
	mounted map[linux.DeviceNumber]bool
	maps    map[string]bool
	// files are the volumes of the pools of files by their files; nil until it is asked for.
	files map[linux.FileID]string
	found []Finding
}

func (e *examination) prepare() {
	e.staged, e.targets = e.survey.StagedAs(), map[string]string{}
	e.mounted, e.maps = map[linux.DeviceNumber]bool{}, map[string]bool{}
	for _, record := range e.survey.Records {
		for _, publication := range record.Publications {
			e.targets[publication.Target] = record.Staged.VolumeID
			if place, err := kubelet.Look(publication.Target, nil); err == nil && place.IsDevice {
				e.mounted[place.Shows] = true
			}
		}
	}
	for _, one := range e.survey.Kubelet {
		for _, use := range one.Uses {
			for _, place := range []kubelet.Place{use.Target, use.Map} {
				if place.IsDevice {
					e.mounted[place.Shows] = true
				}
			}
			if len(use.Map.Mounts) > 0 {
				e.maps[use.Map.Path] = true
			}
		}
	}
}

// add adds a finding, which mend can mend unless it is nil.
func (e *examination) add(f Finding) {
	f.ID = idOf(f.Check, f.Subject)
	e.found = append(e.found, f)
}

// owner returns the ID of the volume that is published at a target, if it is one of
// this driver: by the records, by what kubelet noted, or by what is mounted.
func (e *examination) owner(one kubelet.Volume, use kubelet.Use) (volumeID string, ours bool) {
	if one.Driver != "" {
		return one.ID, one.Driver == e.Inspector.Driver
	}
	for target, id := range e.targets {
		// The records may have kubelet's directory by another path.
		if target == use.Target.Path || strings.HasSuffix(target, filepath.Join("/publish", one.Name, use.Pod)) {
			return id, true
		}
	}
	for _, place := range []kubelet.Place{use.Target, use.Map} {
		if place.IsDevice && e.isOurs(place.Shows) {
			return "", true
		}
	}
	return "", false
}

// isOurs reports whether a device provably is a volume of this node, or a read-only
// view of one: it is staged as one, is a partition of a disk of a pool, or shows the file
// of one. There may be another plugin on the machine, with a node of its own.
func (e *examination) isOurs(number linux.DeviceNumber) bool {
	for _, record := range e.staged {
		if record.Staged.Number == number {
			return true
		}
	}
	at := slices.IndexFunc(e.survey.Loops, func(l blockdev.LoopDevice) bool { return l.Number == number })
	switch {
	case at < 0:
		return e.isPartitionOfOurs(number)
	case e.survey.Loops[at].IsView && e.survey.Loops[at].Device != number:
		return e.isOurs(e.survey.Loops[at].Device)
	default:
		return e.isVolumeOfOurs(e.survey.Loops[at])
	}
}

// uses looks at what kubelet has of each volume for each pod.
func (e *examination) uses() {
	unseen := false
	for _, one := range e.survey.Kubelet {
		for _, use := range one.Uses {
			id, ours := e.owner(one, use)
			switch {
			case !ours:
			case use.State == kubelet.PodGone && (use.Target.Exists || use.Map.Exists):
				if isSettled(use) {
					e.orphan(id, use)
				}
			default:
				e.stacked(id, use.Target)
				e.stacked(id, use.Map)
				unseen = unseen || use.State == kubelet.PodUnseen
			}
		}
	}
	if unseen {
		e.podsUnseen()
	}
}

// podsUnseen says that it was not looked for publications of pods that are gone. It is
// no fault of the node's.
func (e *examination) podsUnseen() {
	pods := filepath.Join(e.Inspector.KubeletDir, "pods")
	e.add(Finding{
		Check: PodsUnseen, Subject: pods,
		Message: fmt.Sprintf("whether volumes are published for pods that are gone (%s) was not looked at: %s, where their secrets are too, cannot be seen from here", OrphanPublish, pods),
		Meaning: "nothing is known to be wrong",
		Remedy:  "where a volume is published, and nobody seems to use it: compare the UIDs that rawblockctl volumes -o wide shows with those of the node's pods, or run rawblockctl doctor --offline on the node itself",
	})
}

// settleTime is how long after the last change of its directories something counts as left
// over: kubelet makes the directory of a pod a moment after the driver has published.
const settleTime = 2 * time.Minute

func isSettled(use kubelet.Use) bool {
	for _, place := range []kubelet.Place{use.Target, use.Map} {
		info, err := os.Stat(filepath.Dir(place.Path))
		if err == nil && time.Since(info.ModTime()) < settleTime {
			return false
		}
	}
	return true
}

// orphan tells of what is published for a pod that kubelet has no directory of.
func (e *examination) orphan(volumeID string, use kubelet.Use) {
	f := Finding{
		Check: OrphanPublish, Subject: use.Target.Path,
		Message: fmt.Sprintf("volume %s is still published for pod %s, of which kubelet has no directory any more", orUnknown(volumeID), use.Pod),
		Meaning: "nobody unpublishes it: the volume cannot be unstaged or deleted, and its disk stays in use",
		Remedy:  "make sure that no container of the pod runs (crictl ps), then rawblockctl doctor --fix",
		Fix:     "detach kubelet's lock, unmount kubelet's mount and the target, and remove the empty files",
		locks:   []string{volumeID, use.Target.Path},
	}
	for _, place := range []kubelet.Place{use.Target, use.Map} {
		if place.Exists && !place.IsDevice && !place.Empty {
			f.Message += fmt.Sprintf("; at %s there is something that this driver did not make", place.Path)
			f.Remedy, f.Fix = "look at what it is, and move it away", ""
			e.add(f)
			return
		}
		if place.IsDevice && !slices.Contains(f.devices, place.Shows) {
			f.devices = append(f.devices, place.Shows)
		}
	}
	if volumeID == "" {
		f.locks = []string{use.Target.Path}
	}
	f.mend = func(ctx context.Context) error { return e.unpublish(ctx, volumeID, use) }
	e.add(f)
}

func orUnknown(volumeID string) string {
	if volumeID == "" {
		return "(ID unknown)"
	}
	return volumeID
}

// unpublish does what kubelet and the driver do when a pod ends.
func (e *examination) unpublish(ctx context.Context, volumeID string, use kubelet.Use) error {
	for _, loop := range e.survey.Loops {
		if loop.Backing == use.Map.Path {
			if err := e.Inspector.Sysfs.DetachLoop(loop); err != nil {
				return err
			}
		}
	}
	// Below the map path there is an empty file, as below a target.
	for _, path := range []string{use.Map.Path, use.Target.Path} {
		target := publish.Target{VolumeID: volumeID, Path: path}
		if recorded := e.recordedPath(path); recorded != "" {
			target.Path = recorded
		}
		if err := e.Publisher.Unpublish(ctx, target); err != nil {
			return err
		}
	}
	return nil
}

// recordedPath returns the path by which a target is recorded, which may lead through
// a link.
func (e *examination) recordedPath(path string) string {
	for target := range e.targets {
		if target != path && filepath.Base(target) == filepath.Base(path) && filepath.Base(filepath.Dir(target)) == filepath.Base(filepath.Dir(path)) {
			if real, err := filepath.EvalSymlinks(filepath.Dir(target)); err == nil && filepath.Join(real, filepath.Base(target)) == path {
				return target
			}
		}
	}
	return ""
}

// stacked tells of several mounts on one path.
func (e *examination) stacked(volumeID string, place kubelet.Place) {
	if len(place.Mounts) < 2 {
		return
	}
	f := Finding{
		Check: StackedMounts, Subject: place.Path,
		Message: fmt.Sprintf("%d mounts are stacked at the place of volume %s", len(place.Mounts), orUnknown(volumeID)),
		Meaning: "unmounting it once does not take the volume away: kubelet may leave the pod Terminating",
		locks:   []string{place.Path},
	}
	if volumeID != "" {
		f.locks = append(f.locks, volumeID)
	}
	if same := slices.Compact(slices.Clone(place.Mounts)); len(same) == 1 {
		f.Remedy, f.Fix = "rawblockctl doctor --fix", "unmount all but the lowest; they all show the same device"
		f.mend = func(context.Context) error { return unstack(place) }
	} else {
		f.Message += ", and they show different devices: " + strings.Join(place.Mounts, ", ")
		f.Meaning += "; which of them the pod was meant to have, nobody can tell"
		f.Remedy = "delete the pod, so that its volume is unpublished with all that is mounted there; see findmnt " + place.Path
	}
	e.add(f)
}

// unstack unmounts all mounts of a place but the lowest.
func unstack(place kubelet.Place) error {
	dir, err := linux.OpenDir(filepath.Dir(place.Path))
	if err != nil {
		return err
	}
	defer dir.Close()
	for range len(place.Mounts) - 1 {
		if err := linux.Unmount(dir, filepath.Base(place.Path), false); err != nil {
			return fmt.Errorf("unmount the topmost of %s: %w", place.Path, err)
		}
	}
	return nil
}

// nameIn returns the name of a volume in its pool, if the pool is one of this node.
func (e *examination) nameIn(volumeID string) (source inspect.Source, name string, ok bool) {
	id, ok := volume.ParseID(volumeID)
	if !ok {
		return inspect.Source{}, "", false
	}
	at := slices.IndexFunc(e.survey.Pools, func(p inspect.PoolFacts) bool { return p.Name == id.Pool })
	if at < 0 {
		return inspect.Source{}, "", false
	}
	return e.survey.Pools[at].Source, id.Name, true
}
