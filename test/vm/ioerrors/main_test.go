// Package ioerrors has disks fail and hang under the plugin, inside of a guest
// machine: what fails reaches the program that reads and writes, and nothing else.
package ioerrors

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr/funcr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	administrator "github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) {
	machine.OnlyInside()
	rig.Main(m)
}

var sysfs = blockdev.NewSysfs("/sys")

// overhead is what a pool needs of a disk itself.
const overhead = 3 * rig.MiB

// node is a plugin with a pool of the disks of a test.
type node struct {
	*rig.Plugin
	pool *disk.Pool
	log  *log
}

// log is what the pool says.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(_, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *log) has(words ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.lines, func(line string) bool {
		return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) })
	})
}

// newDisk plugs a disk in that a pool of this test chooses.
func newDisk(t *testing.T, bus machine.Bus, name string, size int64) *machine.Plugged {
	t.Helper()
	wwn := uint64(0x5000c50000001000)
	for _, letter := range name {
		wwn += uint64(letter)
	}
	return machine.Add(t, machine.Disk{Bus: bus, Size: size, Serial: "errors-" + name, WWN: wwn})
}

// open opens the pool of the disks and serves the plugin.
func open(t *testing.T, options disk.Options) *node {
	t.Helper()
	if len(options.Match.Paths) == 0 {
		options.Match.Serial = "errors-*"
	}
	n := &node{log: &log{}}
	ctx := klog.NewContext(context.WithoutCancel(t.Context()), funcr.New(n.log.add, funcr.Options{}))
	var err error
	n.pool, err = disk.New(ctx, "fast", options, sysfs)
	rig.Must(t, err)
	t.Cleanup(n.pool.Close)
	n.Plugin = rig.NewPluginWith(t, func(options *driver.Options) {
		options.Pools = map[string]driver.Pool{"fast": n.pool}
		options.Devices = administrator.New([]string{"/dev/*", "/dev/mapper/*"}, sysfs)
	})
	return n
}

// waitForDisks waits until so many disks are in the pool, and wiped.
func (n *node) waitForDisks(t *testing.T, count int) {
	t.Helper()
	rig.Eventually(t, func() error {
		_, err := n.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{}) // It has the pool look.
		rig.Must(t, err)
		got := n.pool.Status()
		for _, d := range got.Disks {
			if len(d.Wiping) > 0 {
				return fmt.Errorf("still being wiped: %+v", d.Wiping)
			}
		}
		if len(got.Disks) != count {
			return fmt.Errorf("%d disks are in the pool, want %d: %+v", len(got.Disks), count, got)
		}
		return nil
	})
}

func createRequest(name string, bytes int64) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes, LimitBytes: bytes},
		VolumeCapabilities: []*csi.VolumeCapability{(&rig.Volume{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}).Capability()},
	}
}

func (n *node) provision(t *testing.T, name string, bytes int64) *rig.Volume {
	t.Helper()
	response, err := n.CreateVolume(rig.Context(t), createRequest(name, bytes))
	rig.Must(t, err)
	return n.Provisioned(t, response.GetVolume().GetVolumeId())
}

func (n *node) remove(ctx context.Context, volume *rig.Volume) error {
	_, err := n.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume.ID})
	return err
}

func (n *node) capacity(t *testing.T) int64 {
	t.Helper()
	response, err := n.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{})
	rig.Must(t, err)
	return response.GetAvailableCapacity()
}

// startPod stages and publishes a volume and has a pod write to it.
func startPod(t *testing.T, volume *rig.Volume) (*rig.Writer, string) {
	t.Helper()
	target := volume.Target(t, "pod")
	rig.Must(t, volume.Stage(rig.Context(t)))
	rig.Must(t, volume.Publish(rig.Context(t), target))
	return rig.StartWriter(t, target), target
}

func tearDown(t *testing.T, volume *rig.Volume, target string) {
	t.Helper()
	for range 2 {
		rig.Must(t, volume.Unpublish(rig.Context(t), target))
		rig.Must(t, volume.Unstage(rig.Context(t)))
	}
}

// refusal returns why a disk is not in the pool, once the pool has looked.
func (n *node) refusal(t *testing.T, name string) (state, reason string) {
	t.Helper()
	n.capacity(t)
	for _, refused := range n.pool.Status().Refused {
		if refused.Name == name {
			return refused.State, refused.Reason
		}
	}
	return "", ""
}

// wantHealth checks that the health report of a volume has a reason in the end.
func (n *node) wantHealth(t *testing.T, volume *rig.Volume, reason string) {
	t.Helper()
	rig.Eventually(t, func() error {
		response, err := n.NodeGetVolumeHealth(rig.Context(t), &csi.NodeGetVolumeHealthRequest{VolumeId: volume.ID})
		rig.Must(t, err)
		for _, found := range response.GetVolumeHealth().GetHealthStatuses() {
			if found.GetReason() == reason {
				t.Logf("Health: %s %s: %s", found.GetStatus(), found.GetReason(), found.GetMessage())
				return nil
			}
		}
		return fmt.Errorf("the health of %s is %v, want %s", volume.ID, response.GetVolumeHealth().GetHealthStatuses(), reason)
	})
}

func wantCode(t *testing.T, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %v, want the code %s", err, code)
	}
}

// errNotYet is what eventually is told of what takes its time.
var errNotYet = errors.New("it has not happened")
