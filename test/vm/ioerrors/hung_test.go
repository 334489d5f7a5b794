package ioerrors

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// patience is how long a call may take that does not wait for the hung disk, on a
// slow machine; and how long one is watched that does.
const patience = 5 * time.Second

// returns says whether a call returns, and with what. One that does not is left.
func returns(t *testing.T, name string, call func(context.Context) error) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	began := time.Now()
	err := call(ctx)
	back := ctx.Err() == nil
	t.Logf("%-40s returns=%t after %s: %v", name, back, time.Since(began).Round(time.Millisecond), err)
	return back
}

// A disk of a pool does not answer any more: whoever reads it is stuck in the kernel.
// Pods on other disks are started and taken down all the same, and so is the pod on the
// hung disk; what must read or write a disk of the pool waits, for as long as it takes.
func TestHungDisk(t *testing.T) {
	ctx := rig.Context(t)
	newDisk(t, machine.SCSI, "other", 64*rig.MiB)
	hung := newDisk(t, machine.SCSI, "hung", 96*rig.MiB)
	n := open(t, disk.Options{})
	n.waitForDisks(t, 2)
	victim := n.provision(t, "victim", 80*rig.MiB)
	bystander := n.provision(t, "bystander", 64*rig.MiB-overhead) // Only the other one has room left.
	beside, besideTarget := startPod(t, bystander)
	target := victim.Target(t, "pod")
	rig.Must(t, victim.Stage(ctx))
	rig.Must(t, victim.Publish(ctx, target))

	hung.Hang(t)
	reader := readDirect(t, target)
	rig.Eventually(t, func() error { return reader.stuck() })

	stats := func(volume *rig.Volume, path string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: volume.ID, VolumePath: path})
			return err
		}
	}
	for _, call := range []struct {
		name string
		call func(context.Context) error
	}{
		{"stage again, hung disk", victim.Stage},
		{"publish again, hung disk", func(ctx context.Context) error { return victim.Publish(ctx, target) }},
		{"stats, hung disk", stats(victim, target)},
		{"stats, other disk", stats(bystander, besideTarget)},
	} {
		if !returns(t, call.name, call.call) {
			t.Errorf("%s waits for the hung disk", call.name)
		}
	}
	// This one has to write to the hung disk, and holds the pool's mutex from here on.
	create := func(ctx context.Context) error {
		_, err := n.CreateVolume(ctx, createRequest("new", 4*rig.MiB))
		return err
	}
	if returns(t, "create, on the hung disk", create) {
		t.Error("a volume is made on a disk that does not answer")
	}
	returns(t, "capacity, same pool", func(ctx context.Context) error {
		_, err := n.GetCapacity(ctx, &csi.GetCapacityRequest{})
		return err
	})
	returns(t, "list", func(ctx context.Context) error {
		_, err := n.ListVolumes(ctx, &csi.ListVolumesRequest{})
		return err
	})
	for _, call := range []struct {
		name string
		call func(context.Context) error
	}{
		{"unpublish, other disk", func(ctx context.Context) error { return bystander.Unpublish(ctx, besideTarget) }},
		{"publish, other disk", func(ctx context.Context) error { return bystander.Publish(ctx, besideTarget) }},
		{"stage, other disk", bystander.Stage},
		{"unpublish, hung disk", func(ctx context.Context) error { return victim.Unpublish(ctx, target) }},
		{"unstage, hung disk", victim.Unstage},
		{"metrics", func(context.Context) error { n.metric(t, "rawblock_csi_disk_pool_disks"); return nil }},
	} {
		if !returns(t, call.name, call.call) {
			t.Errorf("%s waits for the hung disk", call.name)
		}
	}
	beside.WaitForMore(t)
	hung.Mend(t)
	reader.wait()
	rig.Must(t, create(ctx))
	beside.Close()
	rig.Must(t, bystander.Unpublish(ctx, besideTarget))
	rig.Must(t, bystander.Unstage(ctx))
}

// The plugin is told to end while one of its calls waits for a disk. It gives up all
// that it has, and the kernel ends what is left once the disk answers.
func TestHungDiskWhenThePluginEnds(t *testing.T) {
	hung := newDisk(t, machine.SCSI, "hung", 96*rig.MiB)
	plugin := rig.StartWithPools(t, "[{name: fast, disk: {match: {serial: errors-*}}}]", rig.Build(t, ""), rig.KubeletDir(t), rig.StateDir(t))
	rig.Eventually(t, func() error {
		_, err := plugin.CreateVolume(rig.Context(t), createRequest("first", 4*rig.MiB))
		return err
	})
	victim := plugin.Provisioned(t, "fast/first@"+rig.NodeID)
	target := victim.Target(t, "pod")
	rig.Must(t, victim.Stage(rig.Context(t)))
	rig.Must(t, victim.Publish(rig.Context(t), target))
	hung.Hang(t)
	reader := readDirect(t, target)
	rig.Eventually(t, func() error { return reader.stuck() })
	if returns(t, "create, on the hung disk", func(ctx context.Context) error {
		_, err := plugin.CreateVolume(ctx, createRequest("second", 4*rig.MiB))
		return err
	}) {
		t.Error("a volume is made on a disk that does not answer")
	}
	began := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- plugin.Stop() }()
	rig.Eventually(t, func() error {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", plugin.Pid()))
		if err == nil && len(threads) > 2 {
			err = fmt.Errorf("the plugin still has %d threads", len(threads))
		}
		return err
	})
	t.Logf("The plugin has ended, but for what waits, %s after SIGTERM.", time.Since(began).Round(time.Second))
	hung.Mend(t)
	rig.Must(t, <-ended)
	reader.wait()
	rig.UnmountAll(t, plugin.KubeletDir+"/plugins")
}

// reader reads a device past the page cache until it is stopped.
type reader struct {
	mu   sync.Mutex
	at   time.Time
	done chan struct{}
	stop chan struct{}
}

func readDirect(t *testing.T, path string) *reader {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	rig.Must(t, err)
	r := &reader{done: make(chan struct{}), stop: make(chan struct{}), at: time.Now()}
	go func() {
		defer close(r.done)
		defer file.Close()
		for {
			select {
			case <-r.stop:
				return
			default:
			}
			unix.Pread(int(file.Fd()), linux.RawBuffer(4096), 0) //nolint:errcheck // Whether it returns is what counts.
			r.mu.Lock()
			r.at = time.Now()
			r.mu.Unlock()
		}
	}()
	return r
}

// stuck returns an error unless it has waited for a read for long.
func (r *reader) stuck() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.at) < 3*time.Second {
		return errNotYet
	}
	return nil
}

func (r *reader) wait() {
	close(r.stop)
	<-r.done
}
