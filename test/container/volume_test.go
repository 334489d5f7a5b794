package container

import (
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// devicePath is where the pods of these tests want the device: the devicePath of
// an entry of volumeDevices.
const devicePath = "/dev/xvda"

// What a block volume does instead: the plugin publishes the device before the
// container starts, and the runtime makes a node for it inside.
func TestVolumeIsADeviceInside(t *testing.T) {
	plugin, disk := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	defer stage(t, volume)()
	target, unpublish := publish(t, volume, "pod-1", false)
	defer unpublish()
	rig.WriteAt(t, disk.Path, "from the host", 0)
	pod := startPod(t, target)

	wantBlockDevice(t, pod, devicePath, disk.Number())
	if inside := pod.Run(t, "head", "-c", "13", devicePath); inside != "from the host" {
		t.Errorf("the container reads %q", inside)
	}
	rig.Must(t, writeInside(t, pod, "from inside"))
	if got := rig.ReadAt(t, disk.Backing, 11, 0); got != "from inside" {
		t.Errorf("on the disk there is %q", got)
	}
	rig.Must(t, pod.Delete(rig.Context(t)))
}

// Two pods have one disk, and only one of them may write. Both containers have
// every right to their device that a runtime can give (rwm), as privileged ones
// do: it is what was published that refuses the write.
func TestReadOnlyVolumeCannotBeWrittenInside(t *testing.T) {
	plugin, disk := rig.NewPlugin(t, nil), rig.NewDisk(t, 8*rig.MiB)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	volume.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	defer stage(t, volume)()
	forReader, unpublishReader := publish(t, volume, "reader", true)
	defer unpublishReader()
	forWriter, unpublishWriter := publish(t, volume, "writer", false)
	defer unpublishWriter()
	reader, writer := startPod(t, forReader), startPod(t, forWriter)

	rig.Must(t, writeInside(t, writer, "by the writer"))
	wantWriteRefused(t, reader)
	if inside := reader.Run(t, "head", "-c", "13", devicePath); inside != "by the writer" {
		t.Errorf("the reader reads %q", inside)
	}
	rig.Must(t, writeInside(t, writer, "by the writer again"))
	if got := rig.ReadAt(t, disk.Backing, 19, 0); got != "by the writer again" {
		t.Errorf("on the disk there is %q", got)
	}
	rig.WriteAt(t, disk.Path, "by the host", 0)
	rig.Must(t, reader.Delete(rig.Context(t)))
	rig.Must(t, writer.Delete(rig.Context(t)))
}

// stage stages the volume, and returns what unstages it.
func stage(t *testing.T, volume *rig.Volume) (unstage func()) {
	t.Helper()
	rig.RequireContainers(t)
	rig.Must(t, volume.Stage(rig.Context(t)))
	return func() { rig.Must(t, volume.Unstage(rig.Context(t))) }
}

// publish publishes the volume for a pod, and returns where, and what unpublishes it.
func publish(t *testing.T, volume *rig.Volume, pod string, readOnly bool) (target string, unpublish func()) {
	t.Helper()
	target = volume.Target(t, pod)
	do := volume.Publish
	if readOnly {
		do = volume.PublishReadOnly
	}
	rig.Must(t, do(rig.Context(t), target))
	return target, func() { rig.Must(t, volume.Unpublish(rig.Context(t), target)) }
}

// startPod starts a container with the device that is published at a target.
func startPod(t *testing.T, target string) *rig.Container {
	t.Helper()
	device, err := oci.DeviceAt(target, devicePath)
	rig.Must(t, err)
	return rig.NewContainer(t, oci.Config{Devices: []oci.Device{device}})
}

// writeInside writes text to the beginning of the pod's device, and waits until
// it is on the disk.
func writeInside(t *testing.T, pod *rig.Container, text string) error {
	t.Helper()
	_, err := pod.Exec(rig.Context(t), "sh", "-c", fmt.Sprintf("echo %q | dd of=%s conv=fsync", text, devicePath))
	return err
}

// wantWriteRefused checks that a pod cannot write: some kernels refuse to open
// the device for it (EACCES, Linux 6.1), others refuse the write (EPERM, Linux 6.18).
func wantWriteRefused(t *testing.T, pod *rig.Container) {
	t.Helper()
	err := writeInside(t, pod, "must not arrive")
	if err == nil {
		t.Error("a write to the read-only volume succeeded")
		return
	}
	if said := err.Error(); !strings.Contains(said, "Operation not permitted") && !strings.Contains(said, "Permission denied") {
		t.Errorf("a write to the read-only volume failed for another reason: %v", err)
	}
}

// wantBlockDevice checks that there is a block device with the number at a path in the container.
func wantBlockDevice(t *testing.T, container *rig.Container, path string, number linux.DeviceNumber) {
	t.Helper()
	// stat prints the two numbers in hexadecimal.
	want := fmt.Sprintf("block special file %x:%x", number.Major, number.Minor)
	if inside := container.Run(t, "stat", "-c", "%F %t:%T", path); inside != want {
		t.Errorf("the container's %s is %q, want %q", path, inside, want)
	}
}
