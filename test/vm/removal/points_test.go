package removal

import (
	"errors"
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// points are the points of a volume's life at which its disk is pulled. Each
// returns after the volume was torn down.
var points = []struct {
	name string
	run  func(t *testing.T, n *node)
}{
	{"before stage", pulledBeforeStage},
	{"between stage and publish", pulledBeforePublish},
	{"while a pod writes", pulledWhileWriting},
	{"while a pod reads", pulledWhileReading},
	{"before unpublish", pulledBeforeUnpublish},
	{"before unstage", pulledBeforeUnstage},
}

const letter = "what the volume holds"

// At whatever point a disk is pulled: the pod can be torn down, nothing else is
// disturbed, what the plugin says is true, and the disk is known again.
func TestPulledAtEachPoint(t *testing.T) {
	for _, on := range kinds {
		for _, point := range points {
			t.Run(on.String()+"/"+point.name, func(t *testing.T) {
				n := newNode(t, on)
				n.writeLetter(t)
				point.run(t, n)
				n.wantAlone(t)
				n.disk.Plug(t)
				n.comeBack(t, letter)
			})
		}
	}
}

// writeLetter puts data on the volume, and leaves it as it was.
func (n *node) writeLetter(t *testing.T) {
	t.Helper()
	rig.Must(t, n.volume.Stage(rig.Context(t)))
	rig.Must(t, n.volume.Publish(rig.Context(t), n.target))
	rig.WriteAt(t, n.target, letter, 0)
	n.tearDown(t)
}

func pulledBeforeStage(t *testing.T, n *node) {
	n.disk.Unplug(t)
	wantCode(t, n.volume.Stage(rig.Context(t)), codes.NotFound)
	n.tearDown(t)
}

func pulledBeforePublish(t *testing.T, n *node) {
	rig.Must(t, n.volume.Stage(rig.Context(t)))
	n.disk.Unplug(t)
	wantCode(t, n.volume.Publish(rig.Context(t), n.target), codes.NotFound)
	n.tearDown(t)
}

func pulledWhileWriting(t *testing.T, n *node) {
	rig.Must(t, n.volume.Stage(rig.Context(t)))
	rig.Must(t, n.volume.Publish(rig.Context(t), n.target))
	pod := rig.StartWriter(t, n.target)
	n.disk.Unplug(t)
	t.Logf("The pod sees: %v.", pod.WaitForError(t))
	n.wantGone(t)
	n.tearDown(t) // The pod holds the device open meanwhile.
	pod.Close()
}

func pulledWhileReading(t *testing.T, n *node) {
	rig.Must(t, n.volume.Stage(rig.Context(t)))
	rig.Must(t, n.volume.PublishReadOnly(rig.Context(t), n.target))
	pod, err := os.Open(n.target)
	rig.Must(t, err)
	defer pod.Close()
	n.disk.Unplug(t)
	// What was not read before is not in the page cache.
	_, err = pod.ReadAt(make([]byte, 4096), 32*rig.MiB)
	if err == nil {
		t.Error("the pod goes on reading from a disk that has gone")
	}
	t.Logf("The pod sees: %v.", err)
	n.wantGone(t)
	n.tearDown(t)
	pod.Close()
	wantNoViews(t)
}

func pulledBeforeUnpublish(t *testing.T, n *node) {
	rig.Must(t, n.volume.Stage(rig.Context(t)))
	rig.Must(t, n.volume.Publish(rig.Context(t), n.target))
	n.disk.Unplug(t)
	n.tearDown(t)
}

func pulledBeforeUnstage(t *testing.T, n *node) {
	rig.Must(t, n.volume.Stage(rig.Context(t)))
	rig.Must(t, n.volume.Publish(rig.Context(t), n.target))
	rig.Must(t, n.volume.Unpublish(rig.Context(t), n.target))
	n.disk.Unplug(t)
	n.tearDown(t)
}

// wantGone checks that each call that looks at the published volume says that its
// disk has gone.
func (n *node) wantGone(t *testing.T) {
	t.Helper()
	ctx := rig.Context(t)
	wantCode(t, n.volume.Stage(ctx), codes.NotFound)
	_, err := n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: n.volume.ID, VolumePath: n.target})
	wantCode(t, err, codes.NotFound)
	_, err = n.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: n.volume.ID, VolumePath: n.target, CapacityRange: &csi.CapacityRange{}, VolumeCapability: n.volume.Capability(),
	})
	wantCode(t, err, codes.NotFound)
	n.wantHealth(t, "DeviceGone")
}

// wantHealth checks that the health report of the volume has a reason.
func (n *node) wantHealth(t *testing.T, reason string) {
	t.Helper()
	response, err := n.NodeGetVolumeHealth(rig.Context(t), &csi.NodeGetVolumeHealthRequest{VolumeId: n.volume.ID})
	rig.Must(t, err)
	for _, found := range response.GetVolumeHealth().GetHealthStatuses() {
		if found.GetReason() == reason {
			return
		}
	}
	t.Errorf("the health is %v, want %s", response.GetVolumeHealth().GetHealthStatuses(), reason)
}

func wantNoViews(t *testing.T) {
	t.Helper()
	rig.Eventually(t, func() error {
		if backing, err := os.ReadFile("/sys/block/loop0/loop/backing_file"); err == nil {
			return errors.New("the read-only view is still there, over " + string(backing))
		}
		return nil
	})
}

// A volume that is deleted while its disk is away is no error, since nobody can tell
// it from one that never was; when the disk is back it is there again, and is deleted
// and wiped then.
func TestPulledBeforeDelete(t *testing.T) {
	for _, on := range kinds {
		if on.layout == static {
			continue // Nothing deletes those.
		}
		t.Run(on.String(), func(t *testing.T) {
			n := newNode(t, on)
			n.writeLetter(t)
			n.disk.Unplug(t)
			n.remove(t)
			n.wantAlone(t)
			n.disk.Plug(t)
			n.waitForDisks(t, 2)
			n.wantVolumes(t, n.bystander, n.volume)
			n.remove(t)
			n.wantVolumes(t, n.bystander)
			n.waitForDisks(t, 2)
			next := n.provision(t, "next", n.size(victimVolume, victimSize))
			n.wantBlank(t, next)
			n.writer.WaitForMore(t)
		})
	}
}

// wantBlank checks that a volume has nothing of the one before at its beginning.
func (n *node) wantBlank(t *testing.T, volume *rig.Volume) {
	t.Helper()
	target := volume.Target(t, "next")
	rig.Must(t, volume.Stage(rig.Context(t)))
	rig.Must(t, volume.Publish(rig.Context(t), target))
	if got := rig.ReadAt(t, target, len(letter), 0); got != string(make([]byte, len(letter))) {
		t.Errorf("the next volume has %q of the one before", got)
	}
	rig.Must(t, volume.Unpublish(rig.Context(t), target))
	rig.Must(t, volume.Unstage(rig.Context(t)))
}

func (n *node) remove(t *testing.T) {
	t.Helper()
	_, err := n.DeleteVolume(rig.Context(t), &csi.DeleteVolumeRequest{VolumeId: n.volume.ID})
	rig.Must(t, err)
}
