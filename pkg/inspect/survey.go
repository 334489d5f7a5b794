package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Survey is what there is on a node, unjudged.
type Survey struct {
	// Pools are what the pools of the configuration tell, in its order.
	Pools []PoolFacts
	// Disks are all whole disks of the machine that are hardware, or that a pool knows.
	Disks []blockdev.Disk
	// Claims are what the tables of those disks say, by the kernel's names.
	Claims map[string]disk.Claim
	// Records are the records of volumes, Attachments those of attachments.
	Records     []publish.Record
	Attachments []hotplug.Recorded
	// Loops are all loop devices.
	Loops []blockdev.LoopDevice
	// Kubelet is what kubelet has, unless KubeletErr says why that is not known.
	Kubelet    []kubelet.Volume
	KubeletErr error
	// Errors say what could not be found out.
	Errors []string
}

// PoolFacts are what a pool tells of itself.
type PoolFacts struct {
	Source
	Infos    []volume.Info
	Capacity volume.Capacity
	// Status is that of a pool of disks, nil for another.
	Status *disk.Status
	// Wipes are the spaces that are still to be wiped.
	Wipes []Wipe
	// Conditions are what is wrong with the pool, but for that with Devices, which it
	// lies on; Damaged what is with volumes that are not among Infos.
	Conditions []volume.Condition
	Devices    []linux.DeviceNumber
	Damaged    map[string][]volume.Condition
	// Failed says why the pool could not tell.
	Failed error
}

// Wipe is a space that is still to be wiped.
type Wipe struct {
	// Of is the disk or the logical volume, Place says where on it.
	Of, Place string
	// Left is how many bytes remain.
	Left uint64
	// Err is why the last attempt failed.
	Err error
}

// Survey looks at everything. Errors: that of ctx alone; all else stands in Errors.
func (i *Inspector) Survey(ctx context.Context) (*Survey, error) {
	s := &Survey{Claims: map[string]disk.Claim{}}
	s.Pools = i.surveyPools(ctx)
	for _, pool := range s.Pools {
		if pool.Failed != nil {
			s.Errors = append(s.Errors, fmt.Sprintf("pool %s: %v", pool.Name, pool.Failed))
		}
	}
	var err error
	s.Records, err = publish.Survey(i.StateDir)
	s.note("what is staged", err)
	s.Attachments, err = hotplug.Survey(i.StateDir)
	s.note("what is attached", err)
	s.Loops, err = i.Sysfs.LoopDevices()
	s.note("loop devices", err)
	s.Kubelet, s.KubeletErr = kubelet.Volumes(i.KubeletDir)
	s.note("what kubelet has", s.KubeletErr)
	i.surveyDisks(ctx, s)
	return s, ctx.Err()
}

func (s *Survey) note(what string, err error) {
	if err != nil {
		s.Errors = append(s.Errors, fmt.Sprintf("%s: %v", what, err))
	}
}

// surveyPools asks the pools side by side.
func (i *Inspector) surveyPools(ctx context.Context) []PoolFacts {
	found := make([]PoolFacts, len(i.Pools))
	var group errgroup.Group
	for n, source := range i.Pools {
		group.Go(func() error {
			facts, err := i.pools.Ask(ctx, "pool "+source.Name, func(ctx context.Context) (PoolFacts, error) {
				return surveyPool(ctx, source)
			})
			if err != nil {
				facts.Failed = err
			}
			facts.Source = source
			if pool, ok := source.Volumes.(disks); ok && facts.Status == nil {
				status := pool.Status() // Nobody waits for it.
				facts.Status, facts.Wipes = &status, wipesOf(status)
			}
			found[n] = facts
			return nil
		})
	}
	group.Wait() //nolint:errcheck,gosec // None of them fails.
	return found
}

func surveyPool(ctx context.Context, source Source) (facts PoolFacts, err error) {
	if source.Volumes == nil {
		return facts, source.Err
	}
	if facts.Infos, err = source.Volumes.List(ctx); err != nil {
		return facts, err
	}
	slices.SortFunc(facts.Infos, func(a, b volume.Info) int { return strings.Compare(a.Name, b.Name) })
	if facts.Capacity, err = source.Volumes.Capacity(ctx, nil); err != nil {
		return facts, err
	}
	if pool, ok := source.Volumes.(groups); ok {
		for _, wiping := range pool.Status().Wiping {
			facts.Wipes = append(facts.Wipes, Wipe{Of: wiping.LogicalVolume, Left: wiping.Left, Err: wiping.Err})
		}
	}
	pool, ok := source.Volumes.(reporter)
	if !ok {
		return facts, nil
	}
	if facts.Conditions, facts.Devices, err = pool.Health(ctx); err != nil {
		return facts, err
	}
	facts.Damaged = map[string][]volume.Condition{}
	for _, name := range pool.Missing() {
		found, _, err := pool.VolumeHealth(ctx, name)
		if err != nil && !errors.Is(err, volume.ErrNotFound) { // It may have gone meanwhile.
			return facts, err
		}
		facts.Damaged[name] = found
	}
	return facts, nil
}

func wipesOf(status disk.Status) []Wipe {
	var found []Wipe
	for _, member := range status.Disks {
		for _, wiping := range member.Wiping {
			found = append(found, Wipe{member.Path, fmt.Sprintf(" at %d", wiping.Start), wiping.Left, wiping.Err})
		}
	}
	return found
}

// surveyDisks looks at the disks of the machine, and reads the tables of those that
// may have one of ours.
func (i *Inspector) surveyDisks(ctx context.Context, s *Survey) {
	all, err := i.Sysfs.Disks()
	s.note("disks", err)
	known := map[string]bool{}
	for _, pool := range s.Pools {
		if pool.Status == nil {
			continue
		}
		for _, member := range pool.Status.Disks {
			known[baseName(member.Path)] = true
		}
		for _, refused := range pool.Status.Refused {
			known[refused.Name] = true
		}
	}
	var mu sync.Mutex
	var group errgroup.Group
	for _, one := range all {
		if !known[one.Name] && !slices.Contains(blockdev.Transports(), one.Transport) {
			continue
		}
		s.Disks = append(s.Disks, one)
		if one.Size == 0 || one.Err != nil {
			continue
		}
		group.Go(func() error {
			claim, err := i.claims.Ask(ctx, "disk "+one.Name, func(context.Context) (disk.Claim, error) { return disk.ReadClaim(one, i.Sysfs) })
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				s.Claims[one.Name] = claim
			} else if silent := new(silentError); errors.As(err, &silent) {
				s.note("partition table", err)
			}
			return nil
		})
	}
	group.Wait() //nolint:errcheck,gosec // None of them fails.
}

// StagedAs returns the records of this boot that say which device is staged as a
// volume, without those of attachments.
func (s *Survey) StagedAs() map[string]publish.Record {
	found := map[string]publish.Record{}
	for _, record := range s.Records {
		if _, claimed := hotplug.ClaimedBy(record.Staged.VolumeID); record.IsStaged && record.Current && !claimed {
			found[record.Staged.VolumeID] = record
		}
	}
	return found
}
