package attack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const (
	// secret is what the victim has written.
	secret = "what the victim has written"
	// victimName is how Kubernetes calls a volume.
	victimName = "pvc-0a1b2c3d-1111-2222-3333-444455556666"
	volumeSize = 8 * rig.MiB
)

// node is a plugin with a pool of each kind that needs no device-mapper.
type node struct {
	*rig.Plugin
	// disk is that of the pool "disks".
	disk *rig.Disk
	// dir is that of the pool "files".
	dir string
}

// poolKinds are the names of the pools of a node.
var poolKinds = []string{"files", "disks"}

func newNode(t *testing.T) node {
	t.Helper()
	sysfs, dir, backing := blockdev.NewSysfs("/sys"), rig.StateDir(t), rig.NewDisk(t, 64*rig.MiB)
	files, err := file.New(t.Context(), "files", file.Options{Directory: dir, Capacity: 64 * rig.MiB}, sysfs)
	rig.Must(t, err)
	t.Cleanup(files.Close)
	disks, err := disk.New(t.Context(), "disks", disk.Options{Match: disk.Selector{Paths: []string{backing.Path}}}, sysfs)
	rig.Must(t, err)
	t.Cleanup(disks.Close)
	rig.Eventually(t, func() error {
		capacity, err := disks.Capacity(t.Context(), nil)
		if err == nil && capacity.Available < 2*volumeSize {
			err = errors.New("the disk is not wiped yet")
		}
		return err
	})
	return node{rig.NewPlugin(t, map[string]driver.Pool{"files": files, "disks": disks}), backing, dir}
}

// create makes a volume, which is deleted after the test.
func (n node) create(t *testing.T, pool, name string) *rig.Volume {
	t.Helper()
	capability := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	made, err := n.CreateVolume(rig.Context(t), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: volumeSize}, Parameters: map[string]string{"pool": pool},
		VolumeCapabilities: []*csi.VolumeCapability{capability},
	})
	rig.Must(t, err)
	volume := n.Provisioned(t, made.GetVolume().GetVolumeId())
	t.Cleanup(func() {
		if err := n.remove(context.WithoutCancel(t.Context()), volume.ID); err != nil {
			t.Errorf("delete it in the end: %v", err)
		}
	})
	return volume
}

func (n node) remove(ctx context.Context, id string) error {
	_, err := n.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

// use stages and publishes a volume for a pod until the test ends, and returns the target.
func use(t *testing.T, volume *rig.Volume, pod string) string {
	t.Helper()
	target, ctx := volume.Target(t, pod), context.WithoutCancel(t.Context())
	t.Cleanup(func() {
		rig.Must(t, errors.Join(volume.Unpublish(ctx, target), volume.Unstage(ctx)))
	})
	rig.Must(t, volume.Stage(ctx))
	rig.Must(t, volume.Publish(ctx, target))
	return target
}

// holds fails the test unless the victim still has, at its target, the device that it
// had, with what it has written.
func holds(t *testing.T, target string, number uint64) {
	t.Helper()
	if got := deviceAt(t, target); got != number {
		t.Errorf("the victim's target shows device %#x, not %#x", got, number)
		return
	}
	node, err := os.Open(target)
	if err != nil {
		t.Errorf("the victim cannot open the device any more: %v", err)
		return
	}
	defer node.Close()
	data := make([]byte, len(secret))
	if _, err := node.ReadAt(data, 0); err != nil || string(data) != secret {
		t.Errorf("the victim reads %q, %v", data, err)
	}
}

// deviceAt returns the number of the device node at a path, 0 where there is none.
func deviceAt(t *testing.T, path string) uint64 {
	t.Helper()
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil || info.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0
	}
	return info.Rdev
}

func refused(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: got %v, want %s", what, err, want)
	}
}

// foreignNode mounts a node with the number of a device as kubelet does for a pod that has
// made it in a volume of its own in memory (emptyDir, subPath), until the test ends.
func foreignNode(t *testing.T, kubeletDir string, number uint64) {
	t.Helper()
	memory, place := filepath.Join(kubeletDir, "pods/attacker/volumes/memory"), filepath.Join(kubeletDir, "pods/attacker/volume-subpaths/x")
	rig.Must(t, errors.Join(os.MkdirAll(memory, 0o755), os.MkdirAll(filepath.Dir(place), 0o755), os.WriteFile(place, nil, 0o600)))
	rig.Must(t, unix.Mount("rawblock-test", memory, "tmpfs", 0, ""))
	t.Cleanup(func() { rig.Must(t, unix.Unmount(memory, unix.MNT_DETACH)) })
	rig.Must(t, unix.Mknod(memory+"/x", unix.S_IFBLK|0o600, int(number)))
	rig.Must(t, unix.Mount(memory+"/x", place, "", unix.MS_BIND, ""))
	t.Cleanup(func() { rig.Must(t, unix.Unmount(place, unix.MNT_DETACH)) })
}

// A pod makes nodes of a victim's device, and has kubelet mount them. The victim's volume is
// no more in use for that.
func TestAttackNodesInAPodsVolume(t *testing.T) {
	for _, pool := range append([]string{"named"}, poolKinds...) {
		t.Run(pool, func(t *testing.T) {
			node, ctx := newNode(t), rig.Context(t)
			var victim *rig.Volume
			if pool == "named" {
				victim = node.NewVolume(t, "victim", rig.NewDisk(t, volumeSize).Path)
			} else {
				victim = node.create(t, pool, victimName)
			}
			target := victim.Target(t, "victim")
			rig.Must(t, victim.Stage(ctx))
			rig.Must(t, victim.Publish(ctx, target))
			foreignNode(t, node.KubeletDir, deviceAt(t, target))
			rig.Must(t, victim.Unpublish(ctx, target))
			rig.Must(t, victim.Unstage(ctx))
			rig.Must(t, victim.Stage(ctx))
			rig.Must(t, victim.Unstage(ctx))
			if pool != "named" {
				rig.Must(t, node.remove(ctx, victim.ID))
			}
		})
	}
}

// lose removes what the plugin has recorded of volumes: what matches a pattern in their
// directories, or all.
func lose(t *testing.T, stateDir, pattern string) {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(stateDir, "????????????????????????????????", pattern))
	rig.Must(t, err)
	if len(records) == 0 {
		t.Fatalf("no records %s in %s", pattern, stateDir)
	}
	for _, record := range records {
		rig.Must(t, os.RemoveAll(record))
	}
}
