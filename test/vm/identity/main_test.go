// Package identity has the plugin meet real disks: what they state of themselves,
// which of them are somebody's, and whether it keeps them apart when they change
// places. It runs inside of a guest machine.
//
// Tests whose names begin with TestUdev need one in which udev runs; the others are
// run without it, so that nothing depends on its links and its knowledge.
package identity

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) {
	machine.OnlyInside()
	rig.Main(m)
}

var (
	sysfs = blockdev.NewSysfs("/sys")
	buses = []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio}
)

// facts returns what sysfs tells of a disk.
func facts(t *testing.T, name string) blockdev.Disk {
	t.Helper()
	disks, err := sysfs.Disks()
	rig.Must(t, err)
	index := slices.IndexFunc(disks, func(d blockdev.Disk) bool { return d.Name == name })
	if index < 0 {
		t.Fatalf("%s is not among the disks %+v", name, disks)
	}
	return disks[index]
}

// run runs a program, which must succeed, and returns what it printed.
func run(t *testing.T, command ...string) string {
	t.Helper()
	output, err := try(command...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, output)
	}
	return output
}

// settle waits until udev has handled all events. udevadm gives up where the daemon closes
// its connection, as it does when it is busy.
func settle(t *testing.T) {
	t.Helper()
	rig.Eventually(t, func() error {
		output, err := try("udevadm", "settle")
		if err != nil {
			err = fmt.Errorf("udevadm settle: %w: %s", err, output)
		}
		return err
	})
}

// try runs a program, also once the test has ended.
func try(command ...string) (string, error) {
	output, err := exec.CommandContext(context.Background(), command[0], command[1:]...).CombinedOutput()
	return string(output), err
}

// undo runs a program when the test ends.
func undo(t *testing.T, command ...string) {
	t.Helper()
	t.Cleanup(func() {
		rig.Eventually(t, func() error {
			output, err := try(command...)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, output)
			}
			return nil
		})
	})
}

// quiet is a context whose logger says nothing.
func quiet(t *testing.T) context.Context {
	t.Helper()
	return klog.NewContext(rig.Context(t), klog.Logger{})
}

// openPool opens a pool of the disks that a selector chooses, until the test ends.
func openPool(t *testing.T, match disk.Selector) *disk.Pool {
	t.Helper()
	pool, err := disk.New(quiet(t), "fast", disk.Options{Match: match}, sysfs)
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// create makes a volume as soon as there is space for it.
func create(t *testing.T, pool *disk.Pool, name string, size uint64) {
	t.Helper()
	rig.Eventually(t, func() error {
		_, err := pool.Create(rig.Context(t), volume.Spec{Name: name, Size: volume.Range{Required: size}})
		return err
	})
}

// activate opens the device of a volume until the test ends.
func activate(t *testing.T, pool *disk.Pool, name string) *blockdev.Device {
	t.Helper()
	device, err := pool.Activate(rig.Context(t), name)
	rig.Must(t, err)
	t.Cleanup(device.Close)
	return device
}

// refusal returns why a disk is not in a pool: the state and the reason.
func refusal(pool *disk.Pool, name string) (state, reason string) {
	for _, refused := range pool.Status().Refused {
		if refused.Name == name {
			return refused.State, refused.Reason
		}
	}
	return "", "it is not refused"
}

// wantRefused checks why a disk is not in the pool, and that the metrics say the same.
func wantRefused(t *testing.T, pool *disk.Pool, name, state, says string) {
	t.Helper()
	got, reason := refusal(pool, name)
	t.Logf("%s: %s", got, reason)
	if got != state || !strings.Contains(reason, says) {
		t.Errorf("want %s with the words %q", state, says)
	}
	registry := prometheus.NewPedanticRegistry()
	rig.Must(t, registry.Register(pool))
	families, err := registry.Gather()
	rig.Must(t, err)
	var labels []string
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == "rawblock_csi_disk_pool_refused" && metric.GetGauge().GetValue() == 1 {
				labels = append(labels, fmt.Sprint(metric.GetLabel()))
			}
		}
	}
	if !slices.ContainsFunc(labels, func(s string) bool {
		return strings.Contains(s, `"`+name+`"`) && strings.Contains(s, `"`+state+`"`)
	}) {
		t.Errorf("no metric says that %s is %s: %v", name, state, labels)
	}
}

// changes counts the writes and discards that a disk has seen
// (Documentation/admin-guide/iostats.rst).
func changes(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile("/sys/block/" + name + "/stat")
	rig.Must(t, err)
	fields := strings.Fields(string(text))
	sum := 0
	for _, index := range []int{4, 11} {
		count, err := strconv.Atoi(fields[index])
		rig.Must(t, err)
		sum += count
	}
	return sum
}

// settled waits until nobody writes to a disk any more and returns changes.
func settled(t *testing.T, name string) int {
	t.Helper()
	run(t, "sync")
	before := -1
	rig.Eventually(t, func() error {
		now := changes(t, name)
		if now != before {
			before = now
			time.Sleep(300 * time.Millisecond)
			return fmt.Errorf("%s is still being written to", name)
		}
		return nil
	})
	return before
}

// attributes are those of a volume that names a device; pins are pairs.
func attributes(device string, pins ...string) map[string]string {
	all := map[string]string{static.DeviceAttribute: device}
	for i := 0; i < len(pins); i += 2 {
		all[pins[i]] = pins[i+1]
	}
	return all
}

// openStatic opens the device that a volume names.
func openStatic(t *testing.T, attributes map[string]string) (*blockdev.Device, error) {
	t.Helper()
	return static.New([]string{"/dev/*", "/dev/disk/by-id/*"}, sysfs).Open(rig.Context(t), attributes)
}
