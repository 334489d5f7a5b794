// Package devmapper tests what pkg/linux asks of device-mapper, in a guest that has one.
package devmapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

const (
	name    = "rawblock-test"
	uuid    = "RAWBLOCK-test-uuid"
	sectors = 2048
)

func dmsetup(t *testing.T, args ...string) string {
	t.Helper()
	output, err := exec.Command("dmsetup", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("dmsetup %v: %v\n%s", args, err, output)
	}
	return strings.TrimSpace(string(output))
}

// newMapping makes a mapping of a disk, until the test ends, and opens it.
func newMapping(t *testing.T) (*machine.Plugged, *blockdev.Device) {
	t.Helper()
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	dmsetup(t, "create", name, "--uuid", uuid, "--table", fmt.Sprintf("0 %d linear %s 0", sectors, disk.Path))
	t.Cleanup(func() { dmsetup(t, "remove", "--retry", name) })
	device, err := blockdev.Open("/dev/mapper/"+name, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(device.Close)
	return disk, device
}

func openMapper(t *testing.T) *linux.MapperControl {
	t.Helper()
	control, err := linux.OpenMapper()
	rig.Must(t, err)
	t.Cleanup(control.Close)
	return control
}

// What the kernel tells is what dmsetup tells.
func TestFacts(t *testing.T) {
	disk, device := newMapping(t)
	control := openMapper(t)
	info, err := control.Mapping(device.Number())
	rig.Must(t, err)
	want := linux.MappingInfo{Number: device.Number(), Name: name, UUID: uuid, Opened: 1, Active: true}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Errorf("by number (-want +got):\n%s", diff)
	}
	if named, err := control.MappingNamed(name); err != nil || named != info {
		t.Errorf("by name: %+v, %v", named, err)
	}
	if all, err := control.Mappings(); err != nil || all[device.Number()] != name || len(all) != 1 {
		t.Errorf("all are %v, %v", all, err)
	}
	backing, err := blockdev.Open(disk.Path, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	defer backing.Close()
	table, err := control.Table(device.Number())
	rig.Must(t, err)
	if diff := cmp.Diff([]linux.MappingTarget{{Length: sectors, Type: "linear", Parameters: backing.Number().String() + " 0"}}, table); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if status, err := control.Status(device.Number()); err != nil || len(status) != 1 || status[0].Type != "linear" || status[0].Parameters != "" {
		t.Errorf("status: %+v, %v", status, err)
	}
	// A disk is no mapping, nor is a name that is longer than any.
	if _, err := control.Mapping(backing.Number()); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("of a disk: %v", err)
	}
	for _, other := range []string{"no-such", strings.Repeat("x", 500)} {
		if _, err := control.MappingNamed(other); !errors.Is(err, syscall.ENXIO) {
			t.Errorf("of %.10s: %v", other, err)
		}
	}
	if err := control.Remove(device.Number()); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("removing one that is open: %v", err)
	}
}

// A table larger than the first buffer comes whole.
func TestLargeTable(t *testing.T) {
	disk, device := newMapping(t)
	control := openMapper(t)
	var table []linux.MappingTarget
	for i := range uint64(sectors) {
		table = append(table, linux.MappingTarget{Start: i, Length: 1, Type: "linear", Parameters: fmt.Sprintf("%s %d", disk.Path, sectors-1-i)})
	}
	rig.Must(t, control.LoadTable(device.Number(), table, false))
	replace(t, control, device.Number())
	got, err := control.Table(device.Number())
	if err != nil || len(got) != sectors || !strings.HasSuffix(got[sectors-1].Parameters, " 0") {
		t.Errorf("%d rows, %v", len(got), err)
	}
}

func replace(t *testing.T, control *linux.MapperControl, number linux.DeviceNumber) {
	t.Helper()
	rig.Must(t, control.Suspend(t.Context(), number))
	rig.Must(t, control.Suspend(t.Context(), number)) // It may be repeated.
	if info, err := control.Mapping(number); err != nil || !info.Suspended || !info.Inactive {
		t.Errorf("suspended: %+v, %v", info, err)
	}
	rig.Must(t, control.Resume(number))
	if info, err := control.Mapping(number); err != nil || info.Suspended || info.Inactive || !info.Active {
		t.Errorf("resumed: %+v, %v", info, err)
	}
}

// A table with an error target is not handed out, wholly or in part of that kind.
func TestErrorTarget(t *testing.T) {
	disk, device := newMapping(t)
	control := openMapper(t)
	rig.Must(t, device.CheckWorking())
	rig.Must(t, control.LoadTable(device.Number(), []linux.MappingTarget{{Length: sectors, Type: "error"}}, false))
	// What was loaded is not in effect, and can be forgotten.
	rig.Must(t, device.CheckWorking())
	rig.Must(t, control.ClearTable(device.Number()))
	if info, err := control.Mapping(device.Number()); err != nil || info.Inactive {
		t.Errorf("cleared: %+v, %v", info, err)
	}
	held, err := os.OpenFile("/dev/mapper/"+name, os.O_RDWR|syscall.O_DSYNC, 0)
	rig.Must(t, err)
	defer held.Close()
	for what, table := range map[string][]linux.MappingTarget{
		"wholly":  {{Length: sectors, Type: "error"}},
		"in part": {{Length: sectors - 8, Type: "error"}, {Start: sectors - 8, Length: 8, Type: "linear", Parameters: disk.Path + " 0"}},
	} {
		rig.Must(t, control.LoadTable(device.Number(), table, false))
		replace(t, control, device.Number())
		if err := device.CheckWorking(); !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "has an error target") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := held.WriteAt(make([]byte, 512), 0); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: a held descriptor writes: %v", what, err)
		}
	}
}

// I/O that does not end is waited for until the context ends; the mapping goes on then,
// and what was written meanwhile arrives.
func TestSuspendWithAHungDisk(t *testing.T) {
	disk, device := newMapping(t)
	control := openMapper(t)
	disk.Hang(t)
	written := make(chan error, 1)
	held, err := os.OpenFile("/dev/mapper/"+name, os.O_RDWR|syscall.O_DSYNC, 0)
	rig.Must(t, err)
	defer held.Close()
	go func() {
		for i := range int64(4) { // A machine lets the first ones through.
			if _, err := held.WriteAt([]byte("a sector of text"), i*4096); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	var suspendErr error
	for range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		suspendErr = control.Suspend(ctx, device.Number())
		cancel()
		if suspendErr != nil {
			break
		}
		// Nothing was under way yet.
		rig.Must(t, control.Resume(device.Number()))
	}
	if !errors.Is(suspendErr, context.DeadlineExceeded) {
		t.Errorf("it was suspended with I/O under way: %v", suspendErr)
	}
	if info, err := control.Mapping(device.Number()); err != nil || info.Suspended {
		t.Errorf("after that it is %+v, %v", info, err)
	}
	disk.Mend(t)
	if err := <-written; err != nil {
		t.Errorf("what was written: %v", err)
	}
}
