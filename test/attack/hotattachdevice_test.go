package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A pod detaches the loop device that it was given, the plugin is started again, and
// another tenant's volume is set up: the pod does not get that under the same number.
func TestAttackHotAttachReusedNumber(t *testing.T) {
	for name, readOnly := range map[string]bool{"read-write": false, "read-only": true} {
		t.Run(name, func(t *testing.T) {
			manager, disk := newHotAttach(t), rig.NewLoop(t, rig.MiB, 512)
			container := rig.NewContainer(t, oci.Config{})
			ctx := rig.Context(t)
			pid, err := container.PID(ctx)
			rig.Must(t, err)
			attached, err := manager.Attach(ctx, hotplug.Request{
				Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb", ReadOnly: readOnly,
			})
			rig.Must(t, err)
			container.Run(t, "busybox", "losetup", "-d", "/dev/xvdb")
			manager.Close()
			for range 4 { // The kernel gives out the lowest free number.
				victim := rig.NewLoop(t, rig.MiB, 512)
				rig.WriteAt(t, victim.Path, secret, 0)
			}
			if got, err := container.Exec(ctx, "head", "-c", fmt.Sprint(len(secret)), "/dev/xvdb"); got == secret {
				t.Errorf("the pod reads what another tenant has written (%v)", err)
			}
			// What it did to itself keeps nobody from detaching it.
			again := startHotAttach(t, manager.stateDir)
			rig.Must(t, again.Reconcile(ctx))
			_, err = again.Detach(ctx, attached.ID)
			rig.Must(t, err)
		})
	}
}

// Who was given a disk to read sends it a command that writes, as CAP_SYS_RAWIO lets him:
// the kernel asks for that, and not how the disk was opened. In a guest, the disk is a SCSI
// disk (TestVMAttackAttachedDisk); others know no such commands.
func TestAttackHotAttachReadOnlyDisk(t *testing.T) {
	manager, disk := newHotAttach(t), rig.NewDisk(t, rig.MiB)
	container := rig.NewContainer(t, oci.Config{CgroupV2: true, Capabilities: []string{"CAP_SYS_RAWIO"}})
	ctx := rig.Context(t)
	rig.WriteAt(t, disk.Path, secret, 0)
	pid, err := container.PID(ctx)
	rig.Must(t, err)
	attached, err := manager.Attach(ctx, hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb", ReadOnly: true})
	rig.Must(t, err)
	if got := container.Run(t, "head", "-c", fmt.Sprint(len(secret)), "/dev/xvdb"); got != secret {
		t.Errorf("the container reads %q", got)
	}
	// This process has the capability too, and opens the node that the container has.
	node, err := os.Open(filepath.Join("/proc", fmt.Sprint(pid), "root/dev/xvdb"))
	rig.Must(t, err)
	err = writeByCommand(node)
	t.Logf("the command: %v", err)
	rig.Must(t, node.Close())
	_, err = manager.Detach(ctx, attached.ID)
	rig.Must(t, err)
	if got := rig.ReadAt(t, disk.Path, len(secret), 0); got != secret {
		t.Errorf("a command through a read-only attachment has written: %q", got)
	}
}

// The claim of a volume that a container has is deleted. The volume, its hold and the
// container's device stay until it was detached.
func TestAttackDeleteAttachedVolume(t *testing.T) {
	var manager *hotplug.Manager
	dir := rig.StateDir(t)
	plugin := rig.NewPluginWith(t, func(options *driver.Options) {
		files, err := file.New(t.Context(), "files", file.Options{Directory: dir, Capacity: 64 * rig.MiB}, options.Sysfs)
		rig.Must(t, err)
		t.Cleanup(files.Close)
		hierarchies, err := devcgroup.FindHierarchies(t.Name())
		rig.Must(t, err)
		options.Inflight = &inflight.Names{}
		manager, err = hotplug.New(hotplug.Options{
			StateDir: rig.StateDir(t), Volumes: options.Publisher, Inflight: options.Inflight, Hierarchies: hierarchies, Sysfs: options.Sysfs,
		})
		rig.Must(t, err)
		t.Cleanup(manager.Close)
		options.Pools, options.Attachments = map[string]driver.Pool{"files": files}, manager
	})
	container, ctx := rig.NewContainer(t, oci.Config{}), rig.Context(t)
	pid, err := container.PID(ctx)
	rig.Must(t, err)
	n := node{Plugin: plugin}
	volume := n.create(t, "files", "attacker")
	rig.Must(t, volume.Stage(ctx))
	attached, err := manager.Attach(ctx, hotplug.Request{Volume: volume.ID, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb", ReadOnly: true})
	rig.Must(t, err)
	refused(t, "DeleteVolume", n.remove(ctx, volume.ID), codes.FailedPrecondition)
	if views, err := filepath.Glob(filepath.Join(plugin.StateDir, "*", "view-*")); err != nil || len(views) != 1 {
		t.Errorf("records of views after it: %v, %v", views, err)
	}
	_, err = manager.Detach(ctx, attached.ID)
	rig.Must(t, err)
}

// sgIO is struct sg_io_hdr of scsi/sg.h.
type sgIO struct {
	interfaceID, direction         int32
	commandLength, maxSenseLength  uint8
	vectors                        uint16
	length                         uint32
	data, command, sense           unsafe.Pointer
	timeout, flags                 uint32
	packID                         int32
	user                           unsafe.Pointer
	status, masked, message, wrote uint8
	hostStatus, driverStatus       uint16
	rest                           int32
	duration, info                 uint32
}

// writeByCommand has a disk overwrite its first block by WRITE(10) of SCSI's block commands.
func writeByCommand(node *os.File) error {
	const (
		ioctl  = 0x2285 // SG_IO of scsi/sg.h
		toDisk = -2     // SG_DXFER_TO_DEV
	)
	data, command, sense := make([]byte, 512), []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, make([]byte, 32)
	copy(data, "overwritten by a command")
	var pinned runtime.Pinner
	defer pinned.Unpin()
	for _, one := range [][]byte{data, command, sense} {
		pinned.Pin(&one[0])
	}
	header := sgIO{
		interfaceID: 'S', direction: toDisk, commandLength: uint8(len(command)), maxSenseLength: uint8(len(sense)),
		length: uint32(len(data)), data: unsafe.Pointer(&data[0]), command: unsafe.Pointer(&command[0]), sense: unsafe.Pointer(&sense[0]), timeout: 10000,
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, node.Fd(), ioctl, uintptr(unsafe.Pointer(&header))); errno != 0 {
		return errno
	}
	if header.status != 0 {
		return fmt.Errorf("status %#x", header.status)
	}
	return nil
}
