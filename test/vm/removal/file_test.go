package removal

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// The disk is pulled that the filesystem of a pool of files is on. Its pods can be
// taken down, and leave nothing that keeps the filesystem mounted; volumes of another
// pool notice nothing.
func TestDiskOfAFilePool(t *testing.T) {
	n, ctx := &node{}, rig.Context(t)
	n.disk = machine.Add(t, machine.Disk{Size: 256 * rig.MiB, WWN: 0x5000c50000000002})
	n.other = machine.Add(t, machine.Disk{Size: 256 * rig.MiB, WWN: 0x5000c50000000001})
	dead, live := mountPool(t, n.disk, "dead"), mountPool(t, n.other, "live")
	n.Plugin = rig.NewPlugin(t, map[string]driver.Pool{"dead": dead, "live": live})
	volume, bystander := n.provisionIn(t, "dead"), n.provisionIn(t, "live")
	n.volume, n.target = volume, volume.Target(t, "pod")
	unattached := n.provisionNamed(t, "dead", "unattached")
	n.writer = n.startPod(t, bystander, "bystander")
	pod := n.startPod(t, volume, "pod")
	n.disk.Unplug(t)
	t.Logf("The pod sees: %v.", pod.WaitForError(t))
	// What the kernel has of the filesystem in memory can be dropped at any time.
	rig.Must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	n.tearDown(t)
	pod.Close()
	n.tearDown(t)
	rig.Must(t, unattached.Unpublish(ctx, unattached.Target(t, "pod")))
	rig.Must(t, unattached.Unstage(ctx))
	n.writer.WaitForMore(t)
	_, err := n.CreateVolume(ctx, requestIn("dead", "new"))
	t.Logf("A new volume in the pool: %v.", err)
	if err == nil {
		t.Error("a volume is made on a disk that has gone")
	}
	capacity, err := n.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: map[string]string{driver.PoolParameter: "dead"}})
	rig.Must(t, err)
	if capacity.GetAvailableCapacity() != 0 {
		t.Errorf("its capacity is %d", capacity.GetAvailableCapacity())
	}
	rig.Must(t, n.provisionNamed(t, "live", "new").Stage(ctx))
	rig.Must(t, n.Provisioned(t, "live/new@"+rig.NodeID).Unstage(ctx))
	rig.Eventually(t, func() error {
		loops, err := filepath.Glob("/sys/block/loop*/loop")
		// The bystander's, and the one that holds it.
		if err == nil && len(loops) > 2 {
			err = errNotYet
		}
		return err
	})
}

// mountPool makes a filesystem on a disk, and a pool in it.
func mountPool(t *testing.T, disk *machine.Plugged, name string) *file.Pool {
	t.Helper()
	dir := (&rig.Disk{Path: disk.Path}).Mount(t, "ext4")
	pool, err := file.New(quiet(t), name, file.Options{Directory: dir + "/pool"}, sysfs)
	rig.Must(t, err)
	t.Cleanup(func() {
		pool.Close()
		unix.Unmount(dir, 0) //nolint:errcheck // The leak check tells.
	})
	return pool
}

func (n *node) provisionIn(t *testing.T, pool string) *rig.Volume {
	t.Helper()
	return n.provisionNamed(t, pool, "vol")
}

func (n *node) provisionNamed(t *testing.T, pool, name string) *rig.Volume {
	t.Helper()
	response, err := n.CreateVolume(rig.Context(t), requestIn(pool, name))
	rig.Must(t, err)
	return n.Provisioned(t, response.GetVolume().GetVolumeId())
}

func requestIn(pool, name string) *csi.CreateVolumeRequest {
	request := createRequest(name, 32*rig.MiB)
	request.Parameters = map[string]string{driver.PoolParameter: pool}
	return request
}
