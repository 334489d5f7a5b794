package identity

import (
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// Disks come and go, mostly under one name, while a pool is asked for a volume all the
// time: the one with the volume, and one that is somebody's. udev, which has each of
// them open for a moment when it comes, is in the way.
func TestUdevDisksThatComeAndGo(t *testing.T) {
	const theirData = "somebody's"
	ours := machine.Add(t, machine.Disk{Size: 64 * rig.MiB})
	pool := openPool(t, disk.Selector{Transport: "scsi"})
	create(t, pool, "a", 8*rig.MiB)
	rig.WriteAt(t, writable(t, pool, "a"), "of the volume", 0)
	ours.Unplug(t)
	theirs := machine.Add(t, machine.Disk{Size: 64 * rig.MiB})
	rig.WriteAt(t, theirs.Path, theirData, 30*rig.MiB)
	theirs.Unplug(t)

	stopAsking := askAllTheTime(t, pool)
	for range 3 {
		ours.Plug(t)
		rig.Eventually(t, func() error { _, err := pool.Get(rig.Context(t), "a"); return err })
		ours.Unplug(t)
		theirs.Plug(t)
		t.Logf("%s after %s", theirs.Path, ours.Path)
		rig.Eventually(t, func() error {
			if state, _ := refusal(pool, theirs.Name); state != "occupied" {
				return errors.New("the pool does not refuse the disk")
			}
			return nil
		})
		theirs.Unplug(t)
	}
	stopAsking()
	theirs.Plug(t)
	if got := rig.ReadAt(t, theirs.Path, len(theirData), 30*rig.MiB); got != theirData {
		t.Errorf("on the disk of somebody there is %q", got)
	}
	if got := rig.ReadAt(t, theirs.Path, rig.MiB, 0); got != string(make([]byte, rig.MiB)) {
		t.Error("the disk of somebody was written to")
	}
}

// askAllTheTime asks for the volume until it is stopped, or the test ends.
func askAllTheTime(t *testing.T, pool *disk.Pool) (stop func()) {
	t.Helper()
	var asking sync.WaitGroup
	stopped := make(chan struct{})
	asking.Go(func() {
		found := 0
		for {
			select {
			case <-stopped:
				if found == 0 {
					t.Error("the volume was never found")
				}
				return
			default:
			}
			if foundAgain(t, pool) {
				found++
			}
		}
	})
	stop = sync.OnceFunc(func() { close(stopped); asking.Wait() })
	t.Cleanup(stop)
	return stop
}

// foundAgain asks for the volume, which is not there or is what it was.
func foundAgain(t *testing.T, pool *disk.Pool) bool {
	time.Sleep(20 * time.Millisecond) // The machine is slow, and does other things as well.
	device, err := pool.Activate(t.Context(), "a")
	if err != nil {
		return false
	}
	defer device.Close()
	raw, err := device.Raw(0)
	if err != nil {
		return false // It goes right now.
	}
	defer raw.Close()
	data := make([]byte, 13)
	switch _, err := raw.ReadAt(data, 0); {
	case err == nil && string(data) != "of the volume":
		t.Errorf("the volume has %q", data)
	case err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EIO) && !errors.Is(err, volume.ErrNotFound):
		t.Errorf("read the volume: %v", err)
	}
	return err == nil
}

// writable returns the path of the device of a volume, which is not kept open.
func writable(t *testing.T, pool *disk.Pool, name string) string {
	t.Helper()
	device, err := pool.Activate(rig.Context(t), name)
	rig.Must(t, err)
	defer device.Close()
	return device.Node().Name()
}
