package ioerrors

import (
	"errors"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

var buses = []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio}

// isDiskError reports whether a program was told of a failing disk; NVMe calls it an
// error of the medium (ENODATA).
func isDiskError(err error) bool { return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENODATA) }

func mentions(text string) bool {
	return strings.Contains(text, unix.EIO.Error()) || strings.Contains(text, unix.ENODATA.Error())
}

// One of two disks of a pool fails each read and write. The pod on it sees that. The
// plugin's calls go on, also those for that pod, and volumes are made on the other
// disk; what must be written to the broken one fails and says why.
func TestBrokenDiskOfAPool(t *testing.T) {
	for _, bus := range buses {
		t.Run(string(bus), func(t *testing.T) {
			ctx := rig.Context(t)
			other := newDisk(t, bus, "other", 64*rig.MiB)
			broken := newDisk(t, bus, "broken", 96*rig.MiB)
			n := open(t, disk.Options{})
			n.waitForDisks(t, 2)
			victim := n.provision(t, "victim", 80*rig.MiB)
			bystander := n.provision(t, "bystander", 40*rig.MiB)
			unused := n.provision(t, "unused", 13*rig.MiB)
			_ = other
			beside, besideTarget := startPod(t, bystander)
			pod, target := startPod(t, victim)

			broken.Break(t)
			err := pod.WaitForError(t)
			if t.Logf("The pod sees: %v.", err); !isDiskError(err) {
				t.Error("that is not an error of a disk")
			}
			// As kubelet does when it restarts: it is the same disk, and nothing is read.
			rig.Must(t, victim.Stage(ctx))
			rig.Must(t, victim.Publish(ctx, target))
			_, err = n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: victim.ID, VolumePath: target})
			rig.Must(t, err)
			if bus == machine.SCSI {
				n.wantHealth(t, victim, "IOErrors")
			}
			pod.Close()
			tearDown(t, victim, target)
			err = n.remove(ctx, victim)
			wantCode(t, err, codes.Internal)
			if err != nil && !mentions(err.Error()) {
				t.Errorf("deleting fails with %v, which does not say that the disk does", err)
			}
			made := n.provision(t, "made", 8*rig.MiB)
			rig.Must(t, n.remove(ctx, made))
			beside.WaitForMore(t)
			_, err = n.ListVolumes(ctx, &csi.ListVolumesRequest{})
			rig.Must(t, err)

			broken.Mend(t)
			rig.Must(t, n.remove(ctx, victim))
			rig.Must(t, n.remove(ctx, unused))
			n.waitForDisks(t, 2)
			beside.WaitForMore(t)
			beside.Close()
			tearDown(t, bystander, besideTarget)
		})
	}
}

// What cannot be read is never adopted, and says why; when it can be, it is looked at
// again. What belongs to the pool has its volumes again then, and they are not said to
// be deleted before.
func TestBrokenWhenItIsLookedAt(t *testing.T) {
	for _, bus := range buses {
		t.Run(string(bus), func(t *testing.T) {
			ctx := rig.Context(t)
			d := newDisk(t, bus, "broken", 64*rig.MiB)
			d.Break(t)
			n := open(t, disk.Options{})
			state, reason := n.refusal(t, d.Name)
			t.Logf("The pool says of the blank disk: %s: %s.", state, reason)
			if state != "failed" || !mentions(reason) || len(n.pool.Status().Disks) != 0 {
				t.Errorf("the pool is %+v with a disk that cannot be read", n.pool.Status())
			}
			if n.capacity(t) != 0 {
				t.Error("space is offered")
			}
			d.Mend(t)
			n.waitForDisks(t, 1)
			victim := n.provision(t, "victim", 8*rig.MiB)
			_, target := startPod(t, victim)
			rig.WriteAt(t, target, "letter", 0)

			// The plugin starts anew over a disk that fails. (This one still has its claim.)
			n.pool.Close()
			d.Break(t)
			again := open(t, disk.Options{})
			state, reason = again.refusal(t, d.Name)
			t.Logf("The pool says of its own disk: %s: %s.", state, reason)
			if state != "failed" || !mentions(reason) {
				t.Errorf("its own disk is %s: %s", state, reason)
			}
			wantCode(t, again.remove(ctx, victim), codes.FailedPrecondition)
			d.Mend(t)
			again.waitForDisks(t, 1)
			device, err := again.pool.Activate(ctx, "victim")
			rig.Must(t, err)
			defer device.Close()
			if got := rig.ReadAt(t, device.Node().Name(), 6, 0); got != "letter" {
				t.Errorf("the volume has %q", got)
			}
			tearDown(t, victim, target)
		})
	}
}

// A disk fails while it is wiped: what is not wiped is not offered, the state, the
// metrics and the log say so, and it is tried again.
func TestBrokenDuringAWipe(t *testing.T) {
	const size = 1024 * rig.MiB
	d := newDisk(t, machine.SCSI, "broken", size)
	n := open(t, disk.Options{Wipe: "zero"})
	n.waitForDisks(t, 1)
	victim := n.provision(t, "victim", size-overhead)
	rig.Must(t, n.remove(rig.Context(t), victim))
	d.Break(t)
	rig.Eventually(t, func() error {
		disks := n.pool.Status().Disks
		if len(disks) == 1 && len(disks[0].Wiping) == 1 && disks[0].Wiping[0].Err != nil {
			t.Logf("Wiping fails with %d of %d bytes left: %v.", disks[0].Wiping[0].Left, disks[0].Wiping[0].Size, disks[0].Wiping[0].Err)
			return nil
		}
		return errNotYet
	})
	if got := n.capacity(t); got != 0 {
		t.Errorf("%d bytes are offered that could not be wiped", got)
	}
	if !n.log.has("Space cannot be wiped and is not offered", d.Path) {
		t.Error("the log does not say so")
	}
	if left := n.metric(t, "rawblock_csi_disk_pool_wiping_left_bytes"); left == 0 {
		t.Error("the metrics say that nothing is left to be wiped")
	}
	_, err := n.CreateVolume(rig.Context(t), createRequest("next", rig.MiB))
	wantCode(t, err, codes.ResourceExhausted)
	d.Mend(t)
	n.waitForDisks(t, 1)
	if got := n.capacity(t); got != size-overhead {
		t.Errorf("%d bytes are offered after it was wiped", got)
	}
}
