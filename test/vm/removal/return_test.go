package removal

import (
	"fmt"
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// A pod still holds the disk that went, so the one that comes back gets another name.
// It is the same disk; but what the pod has is not it, so the pod must go first.
func TestBackUnderAnotherName(t *testing.T) {
	for _, on := range kinds {
		t.Run(on.String(), func(t *testing.T) {
			n, ctx := newNode(t, on), rig.Context(t)
			n.writeLetter(t)
			pod := n.startPod(t, n.volume, "pod")
			was := n.disk.Path
			n.disk.Unplug(t)
			t.Logf("The pod sees: %v.", pod.WaitForError(t))
			n.disk.Plug(t)
			if n.disk.Path == was {
				t.Fatalf("the disk is %s again, although the other one is held", was)
			}
			if n.pool == nil {
				linkOf(t, "victim")
			} else {
				n.waitForDisks(t, 2)
			}
			// As kubelet does when it restarts.
			rig.Eventually(t, func() error { return is(n.volume.Stage(ctx), codes.FailedPrecondition) })
			wantCode(t, n.volume.Publish(ctx, n.target), codes.FailedPrecondition)
			_, err := n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: n.volume.ID, VolumePath: n.target})
			wantCode(t, err, codes.NotFound)
			n.tearDown(t)
			n.comeBack(t, letter)
			pod.Close()
		})
	}
}

// Another disk comes into the place of the one that was published, under its name and
// number, since nobody has held the number. Nothing takes it for the one before.
func TestAnotherDiskInItsPlace(t *testing.T) {
	n, ctx := newNode(t, kind{machine.SCSI, disk.LayoutPartition}), rig.Context(t)
	rig.Must(t, n.volume.Stage(ctx))
	rig.Must(t, n.volume.Publish(ctx, n.target))
	was := numberAt(t, n.target)
	n.disk.Unplug(t)
	n.wantVolumes(t, n.bystander) // The pool lets go of it.

	other, _ := inPlaceOf(t, n.disk, "somebody-elses")
	addSamePartition(t, other)
	if got := numberAt(t, other.Path+"2"); got != was {
		t.Fatalf("the other disk's partition is %s, not %s", got, was)
	}
	rig.WriteAt(t, other.Path+"2", letter, 0)
	// The node of the target opens the other disk now: that is how the kernel is.
	// Kubelet holds a loop device over what is published, so that it does not happen.
	if got := rig.ReadAt(t, n.target, len(letter), 0); got != letter {
		t.Errorf("read %q by the target", got)
	}
	_, err := n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: n.volume.ID, VolumePath: n.target})
	wantCode(t, err, codes.NotFound)
	_, err = n.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: n.volume.ID, VolumePath: n.target, CapacityRange: &csi.CapacityRange{}, VolumeCapability: n.volume.Capability(),
	})
	wantCode(t, err, codes.NotFound)
	wantCode(t, n.volume.Stage(ctx), codes.NotFound)
	wantCode(t, n.volume.Publish(ctx, n.target), codes.NotFound)
	n.tearDown(t)
	n.wantAlone(t)
	if got := rig.ReadAt(t, other.Path+"2", len(letter), 0); got != letter {
		t.Errorf("the other disk has %q now", got)
	}
}

// A blank disk of the pool comes into the place of one whose node a pod still has: the
// pool must not adopt what the pod can write to.
func TestBlankDiskInItsPlace(t *testing.T) {
	n, ctx := newNode(t, kind{machine.SCSI, static}), rig.Context(t)
	rig.Must(t, n.volume.Stage(ctx))
	rig.Must(t, n.volume.Publish(ctx, n.target))
	n.disk.Unplug(t)
	blank, serial := inPlaceOf(t, n.disk, serialOf("blank"))
	pool, err := disk.New(quiet(t), "fast", disk.Options{Match: disk.Selector{Serial: serial}}, sysfs)
	rig.Must(t, err)
	defer pool.Close()
	refused := pool.Status().Refused
	if len(pool.Status().Disks) != 0 {
		t.Error("the pool has adopted a disk that a pod has the node of")
	}
	for _, one := range refused {
		if one.Name == blank.Name {
			t.Logf("The pool says of it: %s: %s.", one.State, one.Reason)
		}
	}
	n.tearDown(t)
	rig.Eventually(t, func() error {
		_, err := pool.Capacity(ctx, nil)
		rig.Must(t, err)
		if len(pool.Status().Disks) != 1 {
			return errNotYet
		}
		return nil
	})
}

// Kubelet holds a loop device over what it has mapped: nobody gets the number.
func TestKubeletsLockKeepsTheNumber(t *testing.T) {
	n, ctx := newNode(t, kind{machine.SCSI, static}), rig.Context(t)
	rig.Must(t, n.volume.Stage(ctx))
	rig.Must(t, n.volume.Publish(ctx, n.target))
	unlock := lockAsKubelet(t, n.target)
	n.disk.Unplug(t)
	other := machine.Add(t, machine.Disk{Size: victimSize, Serial: "somebody-elses", WWN: 0x5000c50000000003})
	if other.Name == n.disk.Name {
		t.Errorf("the other disk is %s, as the one was that is held", other.Name)
	}
	if _, err := os.Open(n.target); err == nil {
		t.Error("the target opens something else")
	}
	unlock()
	n.tearDown(t)
}

// inPlaceOf plugs a disk in that gets the name of one that was pulled, and returns it
// and its serial number. The kernel gives the first name that is free: others may have
// to take those before it, and that of the one that was pulled is free only once the
// kernel has let go of it, some time after the last who had it open.
func inPlaceOf(t *testing.T, pulled *machine.Plugged, serial string) (*machine.Plugged, string) {
	t.Helper()
	var found *machine.Plugged
	var its string
	number := uint64(0)
	rig.Eventually(t, func() error {
		its = fmt.Sprintf("%s-%d", serial, number)
		added := machine.Add(t, machine.Disk{Size: victimSize, Serial: its, WWN: 0x5000c50000000010 + number})
		number++
		switch {
		case added.Name == pulled.Name:
			found = added
			return nil
		case added.Name > pulled.Name:
			added.Unplug(t)
		}
		return fmt.Errorf("the disk got the name %s, not %s", added.Name, pulled.Name)
	})
	return found, its
}

func numberAt(t *testing.T, path string) linux.DeviceNumber {
	t.Helper()
	info, err := linux.StatPath(path)
	rig.Must(t, err)
	return info.Device
}
