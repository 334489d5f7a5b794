package hotplug

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/process"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// volumes is what is known of the volumes of this node. Its methods may be called
// concurrently.
type volumes interface {
	// Stage claims the device for a volume, or whatever else has the name: no
	// other gets it then, unless both have a MULTI_NODE access mode. It may be
	// repeated. Errors: volume.ErrInUse, volume.ErrIncompatible,
	// volume.ErrMismatch.
	Stage(volumeID string, device *blockdev.Device, mode volume.AccessMode) error
	// Unstage undoes Stage. It may be repeated. Errors: volume.ErrPrecondition
	// while the volume is published.
	Unstage(volumeID string) error
	// OpenStaged opens the device that is staged as the volume, and tells with
	// which access mode it is. Errors: volume.ErrNotFound, volume.ErrMismatch.
	OpenStaged(volumeID string) (*blockdev.Device, volume.AccessMode, error)
	// StagedAs returns as which volume the device is staged.
	StagedAs(device *blockdev.Device) (volumeID string, found bool, err error)
	// ViewFor returns the read-only view of a staged device for a reader, which keeps
	// its number until ReleaseViewFor. Both may be repeated.
	ViewFor(volumeID, reader string, device *blockdev.Device) (*blockdev.Device, error)
	ReleaseViewFor(volumeID, reader string) error
	// Hold holds a staged device: it tells a pool that the device is in use, and keeps
	// its number from being given to another where a pod detaches a loop device. It may
	// be repeated.
	Hold(volumeID string, device *blockdev.Device) error
	// Targets returns where the volume is published.
	Targets(volumeID string) ([]string, error)
	// PublishedFor returns what is published for a pod: by volume_id, whether only
	// for reading.
	PublishedFor(podUID string) (readOnly map[string]bool, err error)
}

// runtime is what starts the containers of pods. Its methods may be called
// concurrently.
type runtime interface {
	// Pods returns the pods of this node, also those that have ended.
	Pods(ctx context.Context) ([]cri.Pod, error)
	// Containers returns the running containers of pods.
	Containers(ctx context.Context) ([]cri.Container, error)
	// PID returns the init process of a running container. Errors:
	// volume.ErrNotFound.
	PID(ctx context.Context, containerID string) (int, error)
	// Watch calls changed whenever a container starts or ends, until ctx ends.
	// Errors: cri.ErrUnsupported.
	Watch(ctx context.Context, changed func()) error
}

// Options say what a manager works with.
type Options struct {
	// StateDir is where it makes a directory for its records. It need not outlive the
	// boot, as no container does.
	StateDir string
	// Volumes are the volumes of this node.
	Volumes volumes
	// Inflight are the volumes that a call is under way for: none is attached
	// while it is unpublished or unstaged.
	Inflight *inflight.Names
	// Runtime is the container runtime; nil: pods cannot be named.
	Runtime runtime
	// AttachmentPods says whether pods may ask for attachments (Annotation).
	AttachmentPods bool
	// Hierarchies are where the cgroups are.
	Hierarchies devcgroup.Hierarchies
	// Sysfs is the kernel's device tree.
	Sysfs blockdev.Sysfs
}

// Manager keeps the attachments of this node. Its methods may be called
// concurrently: what is done for one attachment is done one after the other, and waits
// for no other one.
type Manager struct {
	records        records
	volumes        volumes
	inflight       *inflight.Names
	runtime        runtime
	attachmentPods bool
	hierarchies    devcgroup.Hierarchies
	sysfs          blockdev.Sysfs
	processes      process.Table

	// busy are the attachments that something is being done for.
	busy locks
	// limit is for what is asked of the filesystems of containers.
	limit *linux.Limit
	// reconciling is for what of the reconciling others wait for.
	reconciling *linux.Limit
	// mu is held while it is decided who gets a device, and while device cgroups and
	// devices are changed.
	mu sync.Mutex
	// devices are the devices of attachments, open: the kernel does not give the
	// number of a device that is open to another disk, which the containers could
	// then open.
	devices map[string]*blockdev.Device
	// released are the attachments, by their IDs, that were held and are released: whoever
	// was told to ask again does so.
	released map[string]Attachment
	// changed is told when something may have to be reconciled.
	changed chan struct{}
	metrics *metrics
}

// New returns the manager of this node, which takes up what an earlier process left
// when it runs. The caller closes it.
func New(options Options) (*Manager, error) {
	const bootIDFile = "/proc/sys/kernel/random/boot_id" // random(4)
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return nil, fmt.Errorf("tell this boot from the last one: %w", err)
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("tell which processes are seen: %w", err)
	}
	return &Manager{
		records:        records{filepath.Join(options.StateDir, recordsDir), strings.TrimSpace(string(boot)), namespace},
		volumes:        options.Volumes,
		inflight:       options.Inflight,
		runtime:        options.Runtime,
		attachmentPods: options.AttachmentPods,
		hierarchies:    options.Hierarchies,
		sysfs:          options.Sysfs,
		processes:      process.New("/proc"),
		devices:        map[string]*blockdev.Device{},
		released:       map[string]Attachment{},
		limit:          linux.NewLimit(containerWait, maxStuck),
		reconciling:    linux.NewLimit(reconcileWait, math.MaxInt),
		changed:        make(chan struct{}, 1),
		metrics:        newMetrics(),
	}, nil
}

// How long the filesystem of a container may take to answer, and how many that do not are
// waited for at once.
const (
	containerWait = 2 * time.Second
	maxStuck      = 32
)

// reconcileWait is how long the others wait for one attachment to be reconciled.
const reconcileWait = 10 * time.Second

// interval is how long a grant that systemd took, or a container that was
// restarted, may wait where the container runtime sends no events.
const interval = 10 * time.Second

// watchAgain is how long after the runtime ended its events it is asked for more.
const watchAgain = time.Second

// Run reconciles what is recorded with what is, at once, when a container starts
// or ends, and periodically, until ctx ends. What is attached stays so.
func (m *Manager) Run(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		m.watch(ctx)
	}()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for reconcile := m.Reconcile; ; {
		if err := reconcile(ctx); err != nil && ctx.Err() == nil {
			logger.Error(err, "Cannot reconcile all attachments, trying again")
		}
		select {
		case <-ctx.Done():
			<-watched
			return nil
		case <-ticker.C:
			reconcile = m.Reconcile
		case <-m.changed:
			reconcile = m.follow
		}
	}
}

// watch has the runtime tell what happens to containers, again and again, since
// it may be restarted.
func (m *Manager) watch(ctx context.Context) {
	if m.runtime == nil {
		return
	}
	for ctx.Err() == nil {
		err := m.runtime.Watch(ctx, m.wake)
		if errors.Is(err, cri.ErrUnsupported) {
			klog.FromContext(ctx).Info("The container runtime sends no events, looking periodically", "interval", interval)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchAgain):
		}
	}
}

func (m *Manager) wake() {
	select {
	case m.changed <- struct{}{}:
	default: // It is going to look anyway.
	}
}

// startingWait is after how long a container that was being started is looked at again.
const startingWait = time.Second

func (m *Manager) wakeLater() { time.AfterFunc(startingWait, m.wake) }

// Close gives up what the manager holds. What is attached stays so.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, device := range m.devices {
		device.Close()
		delete(m.devices, id)
	}
}

func (m *Manager) closeDevice(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if device, open := m.devices[id]; open {
		device.Close()
		delete(m.devices, id)
	}
}

// keepOpen keeps the device open for as long as it is attached, so that its
// number stays its own.
func (m *Manager) keepOpen(one *record, device *blockdev.Device) {
	m.closeDevice(one.ID)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.devices[one.ID] = device
}

// List returns the attachments of this node, in the order of their IDs.
func (m *Manager) List(context.Context) ([]Attachment, error) {
	all, err := m.records.all()
	attachments := make([]Attachment, len(all))
	for i, one := range all {
		attachments[i] = one.Attachment
	}
	slices.SortFunc(attachments, func(a, b Attachment) int { return strings.Compare(a.ID, b.ID) })
	return attachments, err
}

// get returns the record with the ID. Errors: volume.ErrNotFound.
func (m *Manager) get(id string) (record, error) {
	if strings.ContainsAny(id, "/\x00") || id == "" {
		return record{}, fmt.Errorf("%w: attachment %q; the IDs are those of the list", volume.ErrInvalid, id)
	}
	one, err := m.records.read(id + recordSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("%w: there is no attachment %s on this node", volume.ErrNotFound, id)
	}
	return one, err
}

// levelTry is the log level of what is only being tried.
const levelTry = 4

// set records what has become of an attachment.
func (m *Manager) set(ctx context.Context, one *record, state State, reason string) error {
	if one.State != state || one.Reason != reason {
		logger := klog.FromContext(ctx)
		if state == Pending || state == Detaching {
			// What comes of it follows. It may be tried again and again.
			logger = logger.V(levelTry)
		}
		logger.Info("Attachment", "attachment", one.ID, "state", state, "reason", reason,
			"device", one.Number, "target", one.Target.String(), "path", one.Path)
	}
	if one.State != state {
		one.Since = time.Now().UTC().Truncate(time.Second)
	}
	one.State, one.Reason = state, reason
	if state != Held {
		one.Holders = nil
	}
	return m.records.write(*one)
}
