package inspect

import (
	"context"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/health"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/process"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Options say what to look at.
type Options struct {
	// Node is the name of the node, as it stands in the IDs of volumes.
	Node string
	// Driver is the name of the CSI driver.
	Driver string
	// StateDir is the directory of the plugin's records, KubeletDir kubelet's.
	StateDir, KubeletDir string
	// Pools are those of the configuration.
	Pools []Source
	// Sysfs is the kernel's tree of devices.
	Sysfs blockdev.Sysfs
	// Runtime tells the names of pods; nil: only their UIDs are known.
	Runtime Runtime
	// Monitor finds what is wrong with devices. It knows what it has seen; nil: one that
	// has seen nothing yet.
	Monitor *health.Monitor
	// Patience is how long a pool or a disk is waited for; 0: health.Patience.
	Patience time.Duration
}

// Source is a pool of the configuration.
type Source struct {
	// Name is the name of the pool, Kind the key of its kind in the configuration.
	Name, Kind string
	// Directory is the directory of a pool of files.
	Directory string
	// Volumes tells what is in it; nil where Err says why nothing does.
	Volumes Volumes
	Err     error
}

// Volumes is what is known of the volumes of a pool. Its methods may be called
// concurrently, and may take as long as a disk takes to answer.
type Volumes interface {
	// List returns all volumes.
	List(ctx context.Context) ([]volume.Info, error)
	// Capacity returns what can be made with no parameters.
	Capacity(ctx context.Context, parameters map[string]string) (volume.Capacity, error)
}

// What only some pools know.
type (
	// disks is a pool that is made of disks.
	disks interface{ Status() disk.Status }
	// groups is a pool of logical volumes.
	groups interface{ Status() lvm.Status }
	// placed is a pool that tells where a volume is. Errors: volume.ErrNotFound.
	placed interface {
		Medium(name string) (volume.Medium, error)
	}
	// reporter is a pool that knows what is wrong with it.
	reporter interface {
		// Health returns what is wrong with the pool, and the devices that it lies on.
		Health(ctx context.Context) ([]volume.Condition, []linux.DeviceNumber, error)
		// VolumeHealth returns the same of a volume.
		VolumeHealth(ctx context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error)
		// Missing returns the volumes that List does not return, since something is wrong
		// with them.
		Missing() []string
	}
)

// Runtime is what starts the containers of pods.
type Runtime interface {
	// Pods returns the pods of this node.
	Pods(ctx context.Context) ([]cri.Pod, error)
	// Containers returns the running containers of pods.
	Containers(ctx context.Context) ([]cri.Container, error)
}

// Inspector looks at a node. Its methods may be called concurrently.
type Inspector struct {
	Options
	pools     health.Asker[PoolFacts]
	claims    health.Asker[disk.Claim]
	processes process.Table
}

// New returns an inspector.
func New(options Options) *Inspector {
	i := &Inspector{Options: options, processes: process.New("/proc")}
	if i.Monitor == nil {
		i.Monitor = health.New(options.Sysfs)
	}
	i.pools.Patience, i.claims.Patience = options.Patience, options.Patience
	return i
}
