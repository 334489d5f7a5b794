package inspect

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/health"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

type silentError = health.SilentError

func baseName(path string) string { return filepath.Base(path) }

// Node is what there is on a node. All sizes are in bytes.
type Node struct {
	// Name is the name of the node.
	Name string `json:"name"`
	// Time is when it was looked at.
	Time time.Time `json:"time"`
	// Pools are those of the configuration, in its order.
	Pools []Pool `json:"pools"`
	// Disks are the disks of the machine, in the order of their names.
	Disks []Disk `json:"disks"`
	// Volumes are those of the pools, and those that are staged, by their IDs.
	Volumes []Volume `json:"volumes"`
	// Attachments are the devices in running containers.
	Attachments []hotplug.Attachment `json:"attachments"`
	// Conditions are what is wrong with pools and devices.
	Conditions []Condition `json:"conditions"`
	// Errors say what could not be found out.
	Errors []string `json:"errors"`
}

// Pool is a pool of the configuration.
type Pool struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	// Available is what can be made now, of which the largest volume has MaxVolume and
	// the smallest MinVolume.
	Available uint64 `json:"available"`
	MaxVolume uint64 `json:"maxVolume"`
	MinVolume uint64 `json:"minVolume"`
	// Promised is the sum of the sizes of its volumes.
	Promised uint64 `json:"promised"`
	// Volumes is how many there are.
	Volumes int `json:"volumes"`
	// Wiping is what is still to be wiped before it is offered again.
	Wiping uint64 `json:"wiping"`
	// Disks is how many disks it has, where it is made of disks.
	Disks int `json:"disks"`
	// Error says why the rest is not known.
	Error string `json:"error,omitempty"`
}

// Disk is a disk of the machine.
type Disk struct {
	Name      string `json:"name"`
	Path      string `json:"path"`
	Size      uint64 `json:"size"`
	Transport string `json:"transport,omitempty"`
	Model     string `json:"model,omitempty"`
	Serial    string `json:"serial,omitempty"`
	WWID      string `json:"wwid,omitempty"`
	// State is Adopted, or why the disk is in no pool: a word of the metric
	// rawblock_csi_disk_pool_disks, of the pool that came nearest to it.
	State string `json:"state"`
	// Pool is the pool that has it, or says why not.
	Pool string `json:"pool,omitempty"`
	// Reason says why the pool does not have it.
	Reason string `json:"reason,omitempty"`
	// ID is that of its partition table, where a pool has claimed it.
	ID string `json:"id,omitempty"`
	// Free and Wiping are those of a disk of a pool.
	Free   uint64   `json:"free"`
	Wiping []Wiping `json:"wiping,omitempty"`
}

// Wiping is a space that is being wiped.
type Wiping struct {
	Start uint64 `json:"start"`
	Size  uint64 `json:"size"`
	Left  uint64 `json:"left"`
	Error string `json:"error,omitempty"`
}

// Adopted is the state of a disk of a pool.
const Adopted = "Adopted"

// State is what a volume is used for.
type State string

// The states of a volume, of which the first that holds counts.
const (
	// Gone: it is staged, and its device has gone.
	Gone State = "Gone"
	// Published: pods have it.
	Published State = "Published"
	// Attached: running containers have it, no pod.
	Attached State = "Attached"
	// Staged: prepared for a pod.
	Staged State = "Staged"
	// Unused: nobody on this node has it.
	Unused State = "Unused"
)

// Volume is a volume of the node.
type Volume struct {
	// ID is the volumeHandle of its PersistentVolume.
	ID string `json:"id"`
	// Pool is empty for a device that an administrator named.
	Pool  string `json:"pool,omitempty"`
	Size  uint64 `json:"size"`
	State State  `json:"state"`
	// Device and Number name the device that is staged.
	Device string `json:"device,omitempty"`
	Number string `json:"number,omitempty"`
	// AccessMode is that with which it is staged.
	AccessMode string `json:"accessMode,omitempty"`
	// Users are the pods that have it.
	Users []User `json:"users,omitempty"`
	// Attachments are the IDs of those that have it.
	Attachments []string `json:"attachments,omitempty"`
}

// User is a pod that has a volume.
type User struct {
	// Pod is the UID of the pod.
	Pod string `json:"pod"`
	// Namespace and Name are known where the container runtime was asked.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// Target is where it is published for the pod.
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// String names the pod.
func (u User) String() string {
	if u.Name == "" {
		return "pod " + u.Pod
	}
	return u.Namespace + "/" + u.Name
}

// Condition is something that is wrong with a pool or a volume.
type Condition struct {
	// Of is the pool or the volume.
	Of       string        `json:"of"`
	Severity string        `json:"severity"`
	Reason   volume.Reason `json:"reason"`
	Message  string        `json:"message"`
}

var severities = map[volume.Severity]string{volume.Degraded: "Degraded", volume.Inaccessible: "Inaccessible", volume.DataLoss: "DataLoss"}

// Status returns what there is on the node. Errors: that of ctx alone.
func (i *Inspector) Status(ctx context.Context) (Node, error) {
	s, err := i.Survey(ctx)
	if err != nil {
		return Node{}, err
	}
	return i.Describe(ctx, s)
}

// Describe puts a survey in order.
func (i *Inspector) Describe(ctx context.Context, s *Survey) (Node, error) {
	node := Node{
		Name: i.Node, Time: time.Now().UTC().Truncate(time.Second),
		Pools: []Pool{}, Disks: []Disk{}, Volumes: []Volume{}, Attachments: []hotplug.Attachment{},
		Conditions: []Condition{}, Errors: append([]string{}, s.Errors...),
	}
	for _, facts := range s.Pools {
		node.Pools = append(node.Pools, describePool(facts))
	}
	for _, one := range s.Disks {
		node.Disks = append(node.Disks, describeDisk(one, s))
	}
	for _, one := range s.Attachments {
		if one.Err == nil && one.Current {
			node.Attachments = append(node.Attachments, one.Attachment)
		}
	}
	pods, err := i.podNames(ctx)
	if err != nil {
		node.Errors = append(node.Errors, err.Error())
	}
	node.Volumes = i.describeVolumes(s, pods)
	if err := i.judge(ctx, s, &node); err != nil {
		return Node{}, err
	}
	return node, nil
}

// judge adds what is wrong with the pools, with what they lie on, with their volumes
// that are damaged, with the devices of staged volumes, and with those that could not be
// opened.
func (i *Inspector) judge(ctx context.Context, s *Survey, node *Node) error {
	volumes := map[string][]volume.Condition{}
	for _, facts := range s.Pools {
		found, err := i.Monitor.Pool(ctx, facts.Name, facts.Devices)
		if err != nil {
			return err
		}
		node.addConditions("pool "+facts.Name, slices.Concat(facts.Conditions, found))
		for name, damaged := range facts.Damaged {
			volumes[volume.ID{Pool: facts.Name, Name: name, Node: i.Node}.String()] = damaged
		}
	}
	for id, record := range s.StagedAs() {
		device := record.Staged
		found, err := i.Monitor.Devices(ctx, health.Device{
			Number: device.Number, DiskSeq: device.DiskSeq, IsKnown: true, Writable: !device.Mode.ReadOnly(),
		})
		if err != nil {
			return err
		}
		volumes[id] = append(volumes[id], found...)
	}
	for id, condition := range i.Monitor.Unopened() {
		volumes[id] = append(volumes[id], condition)
	}
	for _, id := range slices.Sorted(maps.Keys(volumes)) {
		node.addConditions(id, volumes[id])
	}
	return nil
}

func (n *Node) addConditions(of string, found []volume.Condition) {
	for _, condition := range volume.MergeConditions(found) {
		n.Conditions = append(n.Conditions, Condition{of, severities[condition.Severity], condition.Reason, condition.Message})
	}
}

func describePool(facts PoolFacts) Pool {
	pool := Pool{
		Name: facts.Name, Kind: facts.Kind, Volumes: len(facts.Infos),
		Available: facts.Capacity.Available, MaxVolume: facts.Capacity.MaxVolume, MinVolume: facts.Capacity.MinVolume,
	}
	for _, info := range facts.Infos {
		pool.Promised += info.Size
	}
	if facts.Failed != nil {
		pool.Error = facts.Failed.Error()
	}
	if facts.Status != nil {
		pool.Disks = len(facts.Status.Disks)
	}
	for _, wipe := range facts.Wipes {
		pool.Wiping += wipe.Left
	}
	return pool
}

func describeDisk(one blockdev.Disk, s *Survey) Disk {
	found := Disk{
		Name: one.Name, Path: one.NodePath, Size: one.Size, Transport: one.Transport,
		Model: one.Model, Serial: one.Serial, WWID: one.WWID, State: "unmatched", Reason: "no pool of disks is configured",
		ID: s.Claims[one.Name].Disk,
	}
	told := false
	for _, facts := range s.Pools {
		if facts.Status == nil {
			continue
		}
		for _, member := range facts.Status.Disks {
			if member.Path == one.NodePath {
				return found.adopted(facts.Name, member)
			}
		}
		for _, refused := range facts.Status.Refused {
			// What several pools say: not being chosen says the least.
			if refused.Name == one.Name && (!told || found.State == "unmatched") {
				found.Pool, found.State, found.Reason, told = facts.Name, refused.State, refused.Reason, true
			}
		}
	}
	return found
}

func (d Disk) adopted(pool string, member disk.Member) Disk {
	d.Pool, d.State, d.Reason, d.ID, d.Free = pool, Adopted, "", member.ID, member.Free
	for _, wiping := range member.Wiping {
		one := Wiping{Start: wiping.Start, Size: wiping.Size, Left: wiping.Left}
		if wiping.Err != nil {
			one.Error = wiping.Err.Error()
		}
		d.Wiping = append(d.Wiping, one)
	}
	return d
}

// describeVolumes returns the volumes of pools, and those that are staged, by their IDs.
func (i *Inspector) describeVolumes(s *Survey, pods map[string]User) []Volume {
	found := map[string]*Volume{}
	for _, facts := range s.Pools {
		for _, info := range facts.Infos {
			id := volume.ID{Pool: facts.Name, Name: info.Name, Node: i.Node}.String()
			found[id] = &Volume{ID: id, Pool: facts.Name, Size: info.Size, State: Unused}
		}
	}
	for id, record := range s.StagedAs() {
		one := found[id]
		if one == nil {
			one = &Volume{ID: id}
			if parsed, ok := volume.ParseID(id); ok {
				one.Pool = parsed.Pool
			}
			found[id] = one
		}
		i.describeStaged(one, record, pods)
	}
	for _, attachment := range s.Attachments {
		one := found[attachment.Volume]
		if one == nil || attachment.Err != nil || !attachment.Current {
			continue
		}
		one.Attachments = append(one.Attachments, attachment.ID)
		if one.State == Staged || one.State == Unused {
			one.State = Attached
		}
	}
	volumes := make([]Volume, 0, len(found))
	for _, one := range found {
		volumes = append(volumes, *one)
	}
	slices.SortFunc(volumes, func(a, b Volume) int { return cmp.Compare(a.ID, b.ID) })
	return volumes
}

func (i *Inspector) describeStaged(one *Volume, record publish.Record, pods map[string]User) {
	device := record.Staged
	one.State, one.Number, one.AccessMode = Staged, device.Number.String(), string(device.Mode)
	for _, publication := range record.Live() {
		pod := filepath.Base(publication.Target)
		user := pods[pod]
		user.Pod, user.Target, user.ReadOnly = pod, publication.Target, publication.ReadOnly
		one.Users = append(one.Users, user)
		one.State = Published
	}
	attached, err := i.Sysfs.IsAttached(device.Number, device.DiskSeq)
	if err != nil || !attached {
		one.State = Gone
		return
	}
	if path, err := i.Sysfs.NodePath(device.Number); err == nil {
		one.Device = path
	}
	if vitals, err := i.Sysfs.Vitals(device.Number); err == nil {
		one.Size = vitals.Size
	}
}

// podNames returns the pods that the container runtime knows, by their UIDs.
func (i *Inspector) podNames(ctx context.Context) (map[string]User, error) {
	if i.Runtime == nil {
		return nil, nil //nolint:nilnil // The UIDs do.
	}
	pods, err := i.Runtime.Pods(ctx)
	if err != nil {
		return nil, fmt.Errorf("names of pods: %w", err)
	}
	found := map[string]User{}
	for _, pod := range pods {
		found[pod.UID] = User{Namespace: pod.Namespace, Name: pod.Name}
	}
	return found, nil
}

// KubeletVolume returns what kubelet has of a volume, if it noted that it is one of
// this driver.
func (i *Inspector) KubeletVolume(s *Survey, id string) (kubelet.Volume, bool) {
	at := slices.IndexFunc(s.Kubelet, func(v kubelet.Volume) bool { return v.ID == id && v.Driver == i.Driver })
	if at < 0 {
		return kubelet.Volume{}, false
	}
	return s.Kubelet[at], true
}
