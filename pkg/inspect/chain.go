package inspect

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/process"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Chain is the whole way of a volume.
type Chain struct {
	// Volume is what Status says of it.
	Volume Volume `json:"volume"`
	// Links are its ways, from the medium on.
	Links []Link `json:"links"`
	// Errors say what could not be found out.
	Errors []string `json:"errors"`
}

// Link is a part of the way of a volume, and what is made of it.
type Link struct {
	Kind LinkKind `json:"kind"`
	// Name is a path or an ID.
	Name string `json:"name"`
	// Detail is for people.
	Detail string `json:"detail,omitempty"`
	// Problem says what is wrong with it: empty where nothing is.
	Problem string `json:"problem,omitempty"`
	// Next are the links that are made of it.
	Next []Link `json:"next,omitempty"`
}

// LinkKind is one of a few words, which stay.
type LinkKind string

// The kinds of links.
const (
	// LinkMedium: a block device that the device is made of.
	LinkMedium LinkKind = "medium"
	// LinkFile: the file behind a loop device, LinkPartition: a partition of a pool's
	// disk, LinkPlace: any other place in a pool.
	LinkFile      LinkKind = "file"
	LinkPartition LinkKind = "partition"
	LinkPlace     LinkKind = "place"
	// LinkDevice: the device of the volume.
	LinkDevice LinkKind = "device"
	// LinkStage: the record that it is staged.
	LinkStage LinkKind = "stage"
	// LinkTarget: where it is published for a pod.
	LinkTarget LinkKind = "target"
	// LinkView: the read-only view that is mounted there.
	LinkView LinkKind = "view"
	// LinkMap: kubelet's own mount, LinkLock: its loop device over that, LinkPod:
	// its link for the pod.
	LinkMap  LinkKind = "map"
	LinkLock LinkKind = "lock"
	LinkPod  LinkKind = "link"
	// LinkContainer: a container that has a node of the device.
	LinkContainer LinkKind = "container"
	// LinkProcess: a process that has the device open.
	LinkProcess LinkKind = "process"
	// LinkAttachment: a hot attachment.
	LinkAttachment LinkKind = "attachment"
)

// Chain returns the whole way of the volume with the ID, of which as much may be given
// as is its alone. Errors: volume.ErrNotFound; volume.ErrInvalid where several have it;
// that of ctx.
func (i *Inspector) Chain(ctx context.Context, id string) (Chain, error) {
	s, err := i.Survey(ctx)
	if err != nil {
		return Chain{}, err
	}
	pods, namesErr := i.podNames(ctx)
	s.note("names of pods", namesErr)
	volumes := i.describeVolumes(s, pods)
	one, err := i.choose(volumes, id)
	if err != nil {
		return Chain{}, err
	}
	t := &tracer{Inspector: i, survey: s, volume: one, pods: pods}
	t.readContainers(ctx)
	links := t.trace(ctx)
	return Chain{Volume: one, Links: links, Errors: append([]string{}, s.Errors...)}, nil
}

// choose returns the volume with the ID, or the only one whose ID contains it.
func (i *Inspector) choose(volumes []Volume, id string) (Volume, error) {
	var like []string
	var found Volume
	for _, one := range volumes {
		if one.ID == id {
			return one, nil
		}
		if strings.Contains(one.ID, id) && id != "" {
			like, found = append(like, one.ID), one
		}
	}
	const most = 5
	switch {
	case len(like) == 1:
		return found, nil
	case len(like) > 1:
		return Volume{}, fmt.Errorf("%w: volume %q could be %s%s; give more of the ID", volume.ErrInvalid, id,
			strings.Join(like[:min(len(like), most)], ", "), map[bool]string{true: " and more"}[len(like) > most])
	default:
		return Volume{}, fmt.Errorf("%w: volume %q is in no pool of node %s, and is not staged on it; rawblockctl volumes lists those that are", volume.ErrNotFound, id, i.Node)
	}
}

// tracer follows one volume.
type tracer struct {
	*Inspector
	survey *Survey
	volume Volume
	pods   map[string]User
	nodes  []process.Node
	// podOf and nameOf tell of the containers, by their IDs.
	podOf, nameOf map[string]string
}

// readContainers finds out which containers have nodes of block devices.
func (t *tracer) readContainers(ctx context.Context) {
	var err error
	t.nodes, err = t.processes.Nodes()
	t.survey.note("devices in containers", err)
	t.podOf, t.nameOf = map[string]string{}, map[string]string{}
	if t.Runtime == nil {
		return
	}
	containers, err := t.Runtime.Containers(ctx)
	t.survey.note("containers of pods", err)
	for _, one := range containers {
		t.podOf[one.ID] = one.PodUID
		t.nameOf[one.ID] = one.PodNamespace + "/" + one.PodName + "/" + one.Name
	}
}

func (t *tracer) trace(ctx context.Context) []Link {
	record, staged := t.survey.StagedAs()[t.volume.ID]
	place := t.place()
	if !staged {
		return append(wrap(place, nil), t.attachments()...)
	}
	number := record.Staged.Number
	device := Link{Kind: LinkDevice, Name: t.volume.Device, Detail: fmt.Sprintf("device %s, disk sequence number %d", number, record.Staged.DiskSeq)}
	vitals, err := t.Sysfs.Vitals(number)
	switch {
	case err != nil:
		device.Name, device.Problem = number.String(), fmt.Sprintf("the device that was staged has gone: %v", err)
	case vitals.DiskSeq != record.Staged.DiskSeq:
		device.Problem = fmt.Sprintf("another disk has the number by now: its disk sequence number is %d", vitals.DiskSeq)
	case vitals.Backing != nil && vitals.Backing.Deleted:
		device.Problem = fmt.Sprintf("the file %s is deleted: its data goes with the device; copy it now", vitals.Backing.Path)
	}
	device.Next = append(t.stage(ctx, record), t.attachments()...)
	if err != nil || vitals.DiskSeq != record.Staged.DiskSeq {
		return wrap(place, []Link{device})
	}
	if vitals.Backing != nil {
		place = []Link{{Kind: LinkFile, Name: vitals.Backing.Path, Detail: placeDetail(place)}}
	}
	return wrap(append(t.media(vitals), place...), []Link{device})
}

func placeDetail(place []Link) string {
	if len(place) == 0 {
		return ""
	}
	return place[0].Detail
}

// wrap puts links into each other, and next into the last.
func wrap(links, next []Link) []Link {
	for _, link := range slices.Backward(links) {
		link.Next = next
		next = []Link{link}
	}
	return next
}

// place returns where the pool has the volume, if it tells.
func (t *tracer) place() []Link {
	for _, facts := range t.survey.Pools {
		pool, ok := facts.Volumes.(placed)
		id, isID := volume.ParseID(t.volume.ID)
		if !ok || !isID || facts.Name != id.Pool {
			continue
		}
		medium, err := pool.Medium(id.Name)
		if err != nil {
			return []Link{{Kind: LinkPlace, Name: "pool " + facts.Name, Problem: err.Error()}}
		}
		kind := LinkPlace
		switch medium.Kind {
		case "file":
			kind = LinkFile
		case "partition":
			kind = LinkPartition
		}
		return []Link{{Kind: kind, Name: medium.Path, Detail: medium.Detail}}
	}
	return nil
}

// maxDepth is how far a device is followed down.
const maxDepth = 16

// media returns what a device is made of, from the lowest.
func (t *tracer) media(vitals blockdev.Vitals) []Link {
	var links []Link
	for range maxDepth {
		if len(vitals.Below)+len(vitals.Lost) == 0 {
			break
		}
		link := Link{Kind: LinkMedium}
		var names, details []string
		var next blockdev.Vitals
		for _, number := range vitals.Below {
			below, err := t.Sysfs.Vitals(number)
			if err != nil {
				link.Problem = err.Error()
				continue
			}
			names = append(names, "/dev/"+below.Name)
			details = append(details, fmt.Sprintf("%s, %d bytes", number, below.Size))
			next.Below, next.Lost = append(next.Below, below.Below...), append(next.Lost, below.Lost...)
		}
		if len(vitals.Lost) > 0 {
			link.Problem = "gone: " + strings.Join(vitals.Lost, ", ")
		}
		link.Name, link.Detail = strings.Join(names, ", "), strings.Join(details, "; ")
		links = append(links, link)
		vitals = next
	}
	slices.Reverse(links)
	return links
}

// stage returns the record that the volume is staged, and all that follows of it.
func (t *tracer) stage(ctx context.Context, record publish.Record) []Link {
	stage := Link{Kind: LinkStage, Name: record.Dir, Detail: "access mode " + string(record.Staged.Mode)}
	if record.Err != nil {
		stage.Problem = record.Err.Error()
	}
	noted, _ := t.KubeletVolume(t.survey, t.volume.ID)
	for _, recorded := range record.Publications {
		stage.Next = append(stage.Next, t.target(ctx, recorded, noted))
	}
	for _, use := range noted.Uses {
		if !slices.ContainsFunc(record.Publications, func(r publish.Recorded) bool { return sameFile(r.Target, use.Target.Path) }) && (use.Target.Exists || use.Map.Exists) {
			link := Link{Kind: LinkTarget, Name: use.Target.Path, Detail: "pod " + t.pod(use.Pod), Problem: "nothing is recorded of it"}
			link.Next = t.mapping(ctx, use)
			stage.Next = append(stage.Next, link)
		}
	}
	return []Link{stage}
}

// sameFile reports whether two paths lead to one file, by whatever links.
func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

func (t *tracer) target(ctx context.Context, recorded publish.Recorded, noted kubelet.Volume) Link {
	pod := baseName(recorded.Target)
	link := Link{Kind: LinkTarget, Name: recorded.Target, Detail: fmt.Sprintf("pod %s, access mode %s", t.pod(pod), recorded.Mode)}
	if recorded.ReadOnly {
		link.Detail += ", read-only"
	}
	if !recorded.Live {
		link.Problem = "no device is mounted there any more"
		return link
	}
	place, err := kubelet.Look(recorded.Target, nil)
	if err != nil {
		link.Problem = err.Error()
		return link
	}
	for _, use := range noted.Uses {
		if use.Pod != pod {
			continue
		}
		if len(use.Target.Mounts) > 1 {
			link.Problem = fmt.Sprintf("%d mounts are stacked there", len(use.Target.Mounts))
		}
		if use.State == kubelet.PodGone {
			link.Problem = "kubelet has no such pod any more"
		}
		link.Next = t.mapping(ctx, use)
	}
	if len(link.Next) == 0 {
		link.Next = t.users(ctx, place.Shows, pod)
	}
	if view, ok := t.view(place.Shows); ok {
		link.Next = []Link{{Kind: LinkView, Name: view.Path, Detail: "read-only view of " + view.Device.String(), Next: link.Next}}
	}
	return link
}

func (t *tracer) view(number linux.DeviceNumber) (blockdev.LoopDevice, bool) {
	at := slices.IndexFunc(t.survey.Loops, func(l blockdev.LoopDevice) bool { return l.Number == number && l.IsView })
	if at < 0 {
		return blockdev.LoopDevice{}, false
	}
	return t.survey.Loops[at], true
}

// mapping returns kubelet's own mount, its lock, its link, and the containers.
func (t *tracer) mapping(ctx context.Context, use kubelet.Use) []Link {
	if !use.Map.Exists {
		return nil
	}
	link := Link{Kind: LinkMap, Name: use.Map.Path}
	switch {
	case !use.Map.IsDevice:
		link.Problem = "no device is mounted there"
	case use.Target.IsDevice && use.Map.Shows != use.Target.Shows:
		link.Problem = fmt.Sprintf("it shows device %s, and the target %s", use.Map.Shows, use.Target.Shows)
	case len(use.Map.Mounts) > 1:
		link.Problem = fmt.Sprintf("%d mounts are stacked there", len(use.Map.Mounts))
	}
	for _, loop := range t.survey.Loops {
		if loop.Backing == use.Map.Path {
			link.Next = append(link.Next, Link{Kind: LinkLock, Name: loop.Path, Detail: "kubelet's lock, over " + loop.Device.String()})
		}
	}
	users := t.users(ctx, use.Map.Shows, use.Pod)
	if use.Link != "" {
		users = []Link{{Kind: LinkPod, Name: use.Link, Next: users}}
	}
	link.Next = append(link.Next, users...)
	return []Link{link}
}

// users returns the containers of a pod that have a node of the device, and the
// processes that have it open. Where nobody tells whose a container is, all count.
func (t *tracer) users(ctx context.Context, number linux.DeviceNumber, pod string) []Link {
	if number == (linux.DeviceNumber{}) {
		return nil
	}
	holders, err := t.processes.Holders(ctx, number, os.Getpid())
	if err != nil {
		t.survey.note("who has the device open", err)
	}
	var links []Link
	shown := map[string]bool{}
	for _, node := range t.nodes {
		of, known := t.podOf[node.Container]
		if node.Number != number || known && of != pod {
			continue
		}
		link := Link{Kind: LinkContainer, Name: node.Container, Detail: strings.TrimSpace(t.nameOf[node.Container] + " has it at " + node.Path)}
		for _, holder := range holders {
			if holder.IsKnown() && holder.Container == node.Container && !shown[node.Container] {
				link.Next = append(link.Next, processLink(holder))
			}
		}
		shown[node.Container] = true
		links = append(links, link)
	}
	for _, holder := range holders {
		if holder.Container == "" {
			links = append(links, processLink(holder))
		}
	}
	return links
}

func processLink(holder process.Holder) Link {
	return Link{Kind: LinkProcess, Name: fmt.Sprint(holder.PID), Detail: holder.Command + " has it open"}
}

func (t *tracer) attachments() []Link {
	var links []Link
	for _, one := range t.survey.Attachments {
		if one.Err != nil || !one.Current || one.Volume != t.volume.ID {
			continue
		}
		link := Link{Kind: LinkAttachment, Name: one.ID, Detail: fmt.Sprintf("%s: %s at %s", one.State, one.Target, one.Path)}
		if one.State != hotplug.Attached {
			link.Problem = one.Reason
		}
		links = append(links, link)
	}
	return links
}

// pod names a pod by what is known of it.
func (t *tracer) pod(uid string) string {
	if user := t.pods[uid]; user.Name != "" {
		return user.String() + " (" + uid + ")"
	}
	return uid
}
