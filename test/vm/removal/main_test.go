// Package removal pulls disks out while the plugin has volumes on them, at each
// point of a volume's life, and plugs them in again, inside of a guest machine.
//
// Of a SCSI disk the host's side has gone before the guest knows, as when somebody
// pulls a drive. QEMU takes an NVMe and a virtio disk away in an orderly way: the
// guest is asked first and lets go of the device. Nothing here says what happens
// when an NVMe drive is torn out.
package removal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
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

// kind is what a volume is on.
type kind struct {
	bus machine.Bus
	// layout is that of a pool, or static where an administrator named the disk.
	layout string
}

const static = "static"

// kinds are every layout and every bus. On SCSI a disk is truly torn out; a whole disk
// is a partition for the kernel too.
var kinds = []kind{
	{machine.SCSI, static},
	{machine.SCSI, disk.LayoutPartition},
	{machine.NVMe, disk.LayoutWhole},
	{machine.Virtio, static},
}

func (k kind) String() string { return string(k.bus) + "/" + k.layout }

// byID is what the volumes of administrators are named by.
const byID = "/dev/disk/by-id"

// The sizes of the two disks of a node, of which one is pulled, and of the volumes
// that fit on one of them only; overhead is what a pool needs of a disk itself.
const (
	victimSize, victimVolume       = 96 * rig.MiB, 80 * rig.MiB
	bystanderSize, bystanderVolume = 64 * rig.MiB, 40 * rig.MiB
	overhead                       = 3 * rig.MiB
)

// node is a plugin with two volumes on two disks. To the one something happens; the
// other one has a pod that writes all the time, and must not notice.
type node struct {
	*rig.Plugin
	// pool is nil where an administrator made the volumes.
	pool   *disk.Pool
	layout string
	// disk is what happens to, volume what is on it.
	disk      *machine.Plugged
	volume    *rig.Volume
	other     *machine.Plugged
	bystander *rig.Volume
	target    string
	writer    *rig.Writer
}

// serialOf is the serial number of a disk of this test.
func serialOf(disk string) string { return "removal-" + disk }

// newNode plugs the disks in and makes the volumes.
func newNode(t *testing.T, on kind) *node {
	t.Helper()
	n := &node{layout: on.layout}
	n.other = machine.Add(t, machine.Disk{Bus: on.bus, Size: bystanderSize, Serial: serialOf("other"), WWN: 0x5000c50000000001})
	n.disk = machine.Add(t, machine.Disk{Bus: on.bus, Size: victimSize, Serial: serialOf("victim"), WWN: 0x5000c50000000002})
	if on.layout == static {
		n.Plugin = rig.NewPluginWith(t, func(options *driver.Options) { options.Devices = administrator.New([]string{byID + "/*"}, sysfs) })
		n.volume, n.bystander = n.named(t, "victim"), n.named(t, "other")
	} else {
		n.openPool(t, disk.Options{Layout: on.layout}, 2)
		n.volume = n.provision(t, "victim", n.size(victimVolume, victimSize))
		n.bystander = n.provision(t, "other", n.size(bystanderVolume, bystanderSize))
	}
	n.writer = n.startPod(t, n.bystander, "bystander")
	n.target = n.volume.Target(t, "pod")
	return n
}

// openPool opens the pool of the disks of this test, which are so many, and serves the
// plugin.
func (n *node) openPool(t *testing.T, options disk.Options, disks int) {
	t.Helper()
	options.Match.Serial = serialOf("*")
	pool, err := disk.New(quiet(t), "fast", options, sysfs)
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	n.pool = pool
	n.Plugin = rig.NewPlugin(t, map[string]driver.Pool{"fast": pool})
	n.waitForDisks(t, disks)
}

// quiet is a context whose logger says nothing.
func quiet(t *testing.T) context.Context { return klog.NewContext(t.Context(), klog.Logger{}) }

func (n *node) size(part, all int64) int64 {
	if n.layout == disk.LayoutWhole {
		return all - overhead
	}
	return part
}

// named is the volume of an administrator on a disk.
func (n *node) named(t *testing.T, name string) *rig.Volume {
	t.Helper()
	link := linkOf(t, name)
	volume := n.NewVolume(t, name, link)
	volume.Context[administrator.SerialAttribute] = serialOf(name)
	return volume
}

// linkOf waits for udev to make the link of a disk. There may be one of the test before,
// which udev is yet to take away.
func linkOf(t *testing.T, name string) (link string) {
	t.Helper()
	rig.Must(t, exec.CommandContext(rig.Context(t), "udevadm", "settle").Run())
	rig.Eventually(t, func() error {
		links, err := filepath.Glob(byID + "/*" + serialOf(name))
		rig.Must(t, err)
		if len(links) == 0 {
			return fmt.Errorf("there is no link of %s in %s", name, byID)
		}
		link = links[0]
		_, err = os.Stat(link)
		return err
	})
	return link
}

func (n *node) provision(t *testing.T, name string, bytes int64) *rig.Volume {
	t.Helper()
	response, err := n.CreateVolume(rig.Context(t), createRequest(name, bytes))
	rig.Must(t, err)
	return n.Provisioned(t, response.GetVolume().GetVolumeId())
}

func createRequest(name string, bytes int64) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes, LimitBytes: bytes},
		VolumeCapabilities: []*csi.VolumeCapability{(&rig.Volume{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}).Capability()},
	}
}

// startPod stages and publishes a volume and has a pod write to it until the test ends.
func (n *node) startPod(t *testing.T, volume *rig.Volume, pod string) *rig.Writer {
	t.Helper()
	target := volume.Target(t, pod)
	rig.Must(t, volume.Stage(rig.Context(t)))
	rig.Must(t, volume.Publish(rig.Context(t), target))
	return rig.StartWriter(t, target)
}

// tearDown takes a volume from its pod, as often as kubelet may ask.
func (n *node) tearDown(t *testing.T) {
	t.Helper()
	for range 2 {
		rig.Must(t, n.volume.Unpublish(rig.Context(t), n.target))
		if _, err := os.Lstat(n.target); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the target is still there: %v", err)
		}
	}
	for range 2 {
		rig.Must(t, n.volume.Unstage(rig.Context(t)))
	}
}

// wantAlone checks that all is as if the disk had never been there, and that the
// other volume's pod has noticed nothing.
func (n *node) wantAlone(t *testing.T) {
	t.Helper()
	records, err := os.ReadDir(n.StateDir)
	rig.Must(t, err)
	if len(records) != 1 {
		t.Errorf("%d volumes are recorded, want the one of the other disk", len(records))
	}
	mounts := slices.DeleteFunc(rig.MountPoints(t), func(point string) bool { return !strings.HasPrefix(point, n.KubeletDir+"/") })
	if len(mounts) != 1 || !strings.HasSuffix(mounts[0], "/bystander") {
		t.Errorf("mounts of the plugin: %v, want that of the other volume", mounts)
	}
	n.writer.WaitForMore(t)
	if n.pool == nil {
		return
	}
	n.wantVolumes(t, n.bystander)
	n.wantCapacity(t, bystanderSize-overhead-n.size(bystanderVolume, bystanderSize))
	n.wantMetrics(t, n.other)
}

func (n *node) wantVolumes(t *testing.T, want ...*rig.Volume) {
	t.Helper()
	response, err := n.ListVolumes(rig.Context(t), &csi.ListVolumesRequest{})
	rig.Must(t, err)
	var got, ids []string
	for _, entry := range response.GetEntries() {
		got = append(got, entry.GetVolume().GetVolumeId())
	}
	for _, volume := range want {
		ids = append(ids, volume.ID)
	}
	slices.Sort(ids)
	if !slices.Equal(got, ids) {
		t.Errorf("volumes are listed as %v, want %v", got, ids)
	}
}

func (n *node) wantCapacity(t *testing.T, want int64) {
	t.Helper()
	response, err := n.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{})
	rig.Must(t, err)
	if response.GetAvailableCapacity() != want {
		t.Errorf("the capacity is %d, want %d", response.GetAvailableCapacity(), want)
	}
}

// wantMetrics checks that the metrics tell of these disks and of no other.
func (n *node) wantMetrics(t *testing.T, disks ...*machine.Plugged) {
	t.Helper()
	registry := prometheus.NewRegistry()
	rig.Must(t, registry.Register(n.pool))
	families, err := registry.Gather()
	rig.Must(t, err)
	named := map[string]bool{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "disk" && family.GetName() != "rawblock_csi_disk_pool_refused" {
					named[label.GetValue()] = true
				}
				if label.GetName() == "state" && label.GetValue() == "adopted" && int(metric.GetGauge().GetValue()) != len(disks) {
					t.Errorf("%v disks are adopted by the metrics, want %d", metric.GetGauge().GetValue(), len(disks))
				}
			}
		}
	}
	for _, disk := range disks {
		if !named[disk.Name] || len(named) != len(disks) {
			t.Errorf("the metrics tell of %v, want %s", named, disk.Name)
		}
	}
}

// comeBack checks that the disk that is plugged in again has the volume with its
// data, whatever its name is.
func (n *node) comeBack(t *testing.T, data string) {
	t.Helper()
	if n.pool == nil {
		linkOf(t, "victim")
	} else {
		n.waitForDisks(t, 2)
		n.wantVolumes(t, n.bystander, n.volume)
	}
	// The link of udev comes and goes a few times, and kubelet repeats its calls.
	rig.Eventually(t, func() error { return n.volume.Stage(rig.Context(t)) })
	rig.Must(t, n.volume.Publish(rig.Context(t), n.target))
	if got := rig.ReadAt(t, n.target, len(data), 0); got != data {
		t.Errorf("the volume has %q after the disk came back, want %q", got, data)
	}
	n.tearDown(t)
	n.writer.WaitForMore(t)
}

// waitForDisks waits until so many disks are in the pool, and wiped. Who looks at all
// that changes, such as udev, is in the way of the first attempt.
func (n *node) waitForDisks(t *testing.T, count int) {
	t.Helper()
	rig.Eventually(t, func() error {
		_, err := n.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{}) // It has the pool look.
		rig.Must(t, err)
		status := n.pool.Status()
		for _, d := range status.Disks {
			if len(d.Wiping) > 0 {
				return fmt.Errorf("still being wiped: %+v", d.Wiping)
			}
		}
		if len(status.Disks) != count {
			return fmt.Errorf("%d disks are in the pool, want %d: %+v", len(status.Disks), count, status)
		}
		return nil
	})
}

func wantCode(t *testing.T, err error, code codes.Code) {
	t.Helper()
	if codeOf(err) != code {
		t.Errorf("got %v, want the code %s", err, code)
	}
}

func codeOf(err error) codes.Code { return status.Code(err) }

// errNotYet is what eventually is told of what takes its time.
var errNotYet = errors.New("it has not happened")
