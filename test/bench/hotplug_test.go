package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// BenchmarkAttachDetach has as its floor what the kernel takes for an attachment, with
// nothing looked at, recorded or verified: a node and one rule, or one program
// replaced; and for the end of it the same without the search for who has the device
// open, which reads /proc.
func BenchmarkAttachDetach(b *testing.B) {
	for name, v2 := range map[string]bool{"v1": false, "v2": true} {
		b.Run(name, func(b *testing.B) {
			container, manager := rig.NewContainer(b, oci.Config{CgroupV2: v2}), newManager(b)
			pid, err := container.PID(rig.Context(b))
			rig.Must(b, err)
			disk := rig.NewDisk(b, rig.MiB)
			request := hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb"}
			floor := newKernelFloor(b, container, pid, disk)
			var attach, detach, attachFloor, detachFloor []time.Duration
			for b.Loop() {
				for range pairs {
					start := time.Now()
					attached, err := manager.Attach(b.Context(), request)
					rig.Must(b, err)
					attach = append(attach, time.Since(start))
					start = time.Now()
					_, err = manager.Detach(b.Context(), attached.ID)
					rig.Must(b, err)
					detach = append(detach, time.Since(start))
					floor.prepare(b)
					start = time.Now()
					floor.attach(b)
					attachFloor = append(attachFloor, time.Since(start))
					start = time.Now()
					floor.detach(b)
					detachFloor = append(detachFloor, time.Since(start))
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(median(attach).Microseconds()), "µs-attach")
			b.ReportMetric(float64(median(detach).Microseconds()), "µs-detach")
			b.ReportMetric(float64(median(attachFloor).Microseconds()), "µs-attach-floor")
			b.ReportMetric(float64(median(detachFloor).Microseconds()), "µs-detach-floor")
			b.ReportMetric(float64(median(attach))/float64(median(attachFloor)), "x-attach-floor")
			b.ReportMetric(float64(median(detach))/float64(median(detachFloor)), "x-detach-floor")
		})
	}
}

func newManager(b *testing.B) *hotplug.Manager {
	b.Helper()
	sysfs, stateDir := blockdev.NewSysfs("/sys"), rig.StateDir(b)
	publisher, err := publish.New(stateDir, sysfs)
	rig.Must(b, err)
	hierarchies, err := devcgroup.FindHierarchies(b.Name())
	rig.Must(b, err)
	manager, err := hotplug.New(hotplug.Options{StateDir: stateDir, Volumes: publisher, Inflight: &inflight.Names{}, Hierarchies: hierarchies, Sysfs: sysfs})
	rig.Must(b, err)
	b.Cleanup(manager.Close)
	return manager
}

// kernelFloor makes the calls that nothing can be attached without, and no others.
type kernelFloor struct {
	node   string
	disk   *rig.Disk
	cgroup *os.File
	// v2 says that programs decide on devices: program is the container's, and
	// granted the one in its place.
	v2               bool
	program, granted *linux.Program
	flags            linux.AttachFlags
}

func newKernelFloor(b *testing.B, container *rig.Container, pid int, disk *rig.Disk) *kernelFloor {
	b.Helper()
	floor := &kernelFloor{node: fmt.Sprintf("/proc/%d/root/dev/floor", pid), disk: disk}
	for _, path := range container.Cgroups() {
		dir, err := os.Open(path)
		rig.Must(b, err)
		b.Cleanup(func() { dir.Close() })
		if _, err := os.Stat(filepath.Join(path, "devices.allow")); err == nil {
			floor.cgroup = dir
		}
		if ids, _, err := linux.DeviceProgramIDs(dir, false); err == nil && len(ids) == 1 {
			floor.cgroup, floor.v2 = dir, true
		}
	}
	return floor
}

// prepare finds the program that is attached now.
func (f *kernelFloor) prepare(b *testing.B) {
	if !f.v2 {
		return
	}
	ids, flags, err := linux.DeviceProgramIDs(f.cgroup, false)
	rig.Must(b, err)
	f.flags = flags
	f.program, err = linux.OpenProgram(ids[0])
	rig.Must(b, err)
}

func (f *kernelFloor) attach(b *testing.B) {
	number := f.disk.Number()
	if !f.v2 {
		rig.Must(b, linux.WriteFileAt(f.cgroup, "devices.allow", fmt.Sprintf("b %s rw", number)))
	} else {
		var err error
		f.granted, err = linux.LoadDeviceProgram(f.program.Name, f.program.GPL, f.program.Instructions)
		rig.Must(b, err)
		rig.Must(b, linux.AttachDeviceProgram(f.cgroup, f.granted, f.program, f.flags))
	}
	rig.Must(b, unix.Mknod(f.node, unix.S_IFBLK|0o660, int(unix.Mkdev(number.Major, number.Minor))))
}

func (f *kernelFloor) detach(b *testing.B) {
	if !f.v2 {
		rig.Must(b, linux.WriteFileAt(f.cgroup, "devices.deny", fmt.Sprintf("b %s rw", f.disk.Number())))
	} else {
		rig.Must(b, linux.AttachDeviceProgram(f.cgroup, f.program, f.granted, f.flags))
		f.granted.Close()
		f.program.Close()
	}
	rig.Must(b, unix.Unlink(f.node))
}
