package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"
)

// disk is a loop device that stands for a disk of a node. Its link is made by hand:
// udev makes it for real disks.
type disk struct {
	scene *scene
	node  node
	// file is its data, and link its stable path, which the configuration of the
	// nodes allows volumes to name.
	file, link string
	// loop is its device while it is plugged in.
	loop string
}

// diskSize is in bytes.
const diskSize = 64 << 20

// newDisk makes a disk, and takes it away at the end.
func (s *scene) newDisk(n node) *disk {
	s.Helper()
	d := &disk{scene: s, node: n, file: "/var/tmp/" + s.namespace, link: "/dev/disk/by-id/virtio-rawblock-" + s.namespace}
	n.mustShell(s, "truncate -s %d %s", diskSize, d.file)
	s.afterwards = append(s.afterwards, func() {
		if d.loop != "" {
			n.mustShell(s, "losetup --detach %s", d.loop)
		}
		n.mustShell(s, "rm -f %[1]s %[1]s.kept %[2]s; cd /dev && rmdir -p disk/by-id 2>/dev/null || true", d.file, d.link)
	})
	d.plug()
	return d
}

// plug gives the disk a device, which may have another number than before.
func (d *disk) plug() {
	d.scene.Helper()
	d.loop = d.node.mustShell(d.scene, "losetup --find --show %s", d.file)
	d.node.mustShell(d.scene, "mkdir -p /dev/disk/by-id && ln -sfn ../../%s %s", strings.TrimPrefix(d.loop, "/dev/"), d.link)
}

// fail has the disk answer with errors wherever it is read, and repair gives it back
// what it had, before it is plugged in again.
func (d *disk) fail() {
	d.scene.Helper()
	d.node.mustShell(d.scene, "sync; cp %[1]s %[1]s.kept && truncate -s 0 %[1]s", d.file)
}

func (d *disk) repair() {
	d.scene.Helper()
	d.node.mustShell(d.scene, "mv %[1]s.kept %[1]s", d.file)
}

// pull takes the disk out: its device is no more.
func (d *disk) pull() {
	d.scene.Helper()
	loop := d.loop
	d.node.mustShell(d.scene, "rm %s; losetup --detach %s", d.link, loop)
	d.loop = ""
	must(d.scene, removeLoop(loop))
}

// removeLoop removes a loop device that has no file. The nodes have the kernel of
// the machine that the test runs on.
func removeLoop(path string) error {
	number, err := strconv.Atoi(strings.TrimPrefix(path, "/dev/loop"))
	if err != nil {
		return err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	// Whoever looks at all block devices, such as udev, holds it for a moment.
	for range 50 {
		err = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number)
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return os.NewSyscallError("ioctl LOOP_CTL_REMOVE of "+path, err)
}

// volume makes the PersistentVolume of the disk, as an administrator does, and the
// claim that gets it.
func (d *disk) volume(claim string) {
	d.scene.Helper()
	d.volumeOf(claim, topologyKey, corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
		Driver:           driverName,
		VolumeHandle:     d.node.name + "/" + d.scene.namespace,
		VolumeAttributes: map[string]string{"device": d.link, "size": fmt.Sprint(diskSize)},
	}})
}

// localVolume does the same without the driver: kubelet has volumes that are devices
// of a node.
func (d *disk) localVolume(claim string) {
	d.scene.Helper()
	d.volumeOf(claim, hostnameKey, corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: d.loop}})
}

func (d *disk) volumeOf(claim, nodeKey string, source corev1.PersistentVolumeSource) {
	s := d.scene
	s.Helper()
	size := fmt.Sprint(diskSize)
	block, none := corev1.PersistentVolumeBlock, ""
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: s.namespace},
		Spec: corev1.PersistentVolumeSpec{
			VolumeMode:                    &block,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef:                      &corev1.ObjectReference{Namespace: s.namespace, Name: claim},
			PersistentVolumeSource:        source,
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: nodeKey, Operator: corev1.NodeSelectorOpIn, Values: []string{d.node.name}},
				}}},
			}},
		},
	}
	_, err := s.kube.CoreV1().PersistentVolumes().Create(s.Context(), volume, metav1.CreateOptions{})
	must(s, err)
	// It goes once its claim has gone.
	s.Cleanup(func() {
		must(s, s.kube.CoreV1().PersistentVolumes().Delete(context.Background(), s.namespace, metav1.DeleteOptions{}))
	})
	spec := s.claimSpec(size, corev1.ReadWriteOnce)
	spec.StorageClassName, spec.VolumeName = &none, s.namespace
	s.makeClaim(claim, spec)
}
