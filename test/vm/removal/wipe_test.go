package removal

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// A disk is pulled while it is wiped, from its end to its beginning. What is not
// wiped is not offered, neither while it is away nor when it is back, and the wiping
// goes on.
func TestPulledDuringAWipe(t *testing.T) {
	const size = 1024 * rig.MiB
	n := &node{layout: disk.LayoutPartition}
	n.disk = machine.Add(t, machine.Disk{Size: size, Serial: serialOf("victim"), WWN: 0x5000c50000000002})
	n.openPool(t, disk.Options{Wipe: "zero"}, 1)
	n.volume = n.provision(t, "victim", size-overhead)
	n.target = n.volume.Target(t, "pod")
	n.writeLetter(t)
	n.remove(t)
	rig.Eventually(t, func() error {
		for _, d := range n.pool.Status().Disks {
			if len(d.Wiping) == 1 && d.Wiping[0].Left < d.Wiping[0].Size {
				return nil
			}
		}
		return errors.New("the wiping has not begun")
	})
	n.disk.Unplug(t)
	rig.Eventually(t, func() error {
		n.wantCapacity(t, 0)
		if disks := n.pool.Status().Disks; len(disks) > 0 {
			return fmt.Errorf("the disk is still in the pool: %+v", disks)
		}
		return nil
	})
	n.disk.Plug(t)
	rig.Eventually(t, func() error {
		capacity, err := n.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{})
		rig.Must(t, err)
		disks := n.pool.Status().Disks
		if len(disks) == 0 {
			return errors.New("the disk is not in the pool")
		}
		if len(disks[0].Wiping) > 0 && capacity.GetAvailableCapacity() > 0 {
			return nil // A part is done: that may be offered.
		}
		if len(disks[0].Wiping) > 0 {
			return errors.New("the wiping has not ended")
		}
		return nil
	})
	n.waitForDisks(t, 1)
	n.wantCapacity(t, size-overhead)
	n.wantBlank(t, n.provision(t, "next", size-overhead))
}

// A disk is pulled while a volume is made on it. Whatever the call returns, and
// whatever came of it: when the disk is back, the repeated call gives one volume of
// the size that was asked for.
func TestPulledDuringCreateVolume(t *testing.T) {
	for attempt := range 4 {
		t.Run(fmt.Sprint(attempt), func(t *testing.T) {
			n := newNode(t, kind{machine.SCSI, disk.LayoutPartition})
			n.remove(t)
			n.waitForDisks(t, 2)
			names, errs := n.makeUntil(t, 2*attempt, func() { n.disk.Unplug(t) })
			t.Logf("%d volumes were asked for meanwhile, and the errors are: %v.", len(names), errs)
			n.writer.WaitForMore(t)
			n.disk.Plug(t)
			n.waitForDisks(t, 2)
			want := []*rig.Volume{n.bystander}
			for _, name := range names {
				want = append(want, n.provision(t, name, rig.MiB))
			}
			n.wantVolumes(t, want...)
			for _, volume := range want[1:] {
				// It is repeated while udev looks at the new partition.
				rig.Eventually(t, func() error {
					_, err := n.DeleteVolume(rig.Context(t), &csi.DeleteVolumeRequest{VolumeId: volume.ID})
					return err
				})
			}
			n.waitForDisks(t, 2)
			n.wantCapacity(t, bystanderSize-bystanderVolume+victimSize-2*overhead)
			n.writer.WaitForMore(t)
		})
	}
}

// makeUntil makes small volumes without end, does something meanwhile, after a few were
// made, and returns the names of all once that is done, and how often which error came.
func (n *node) makeUntil(t *testing.T, after int, do func()) (names []string, errs map[string]int) {
	t.Helper()
	begun, done := make(chan struct{}), make(chan struct{})
	errs = map[string]int{}
	var calls sync.WaitGroup
	calls.Go(func() {
		for number := 0; ; number++ {
			if number == after {
				close(begun)
			}
			names = append(names, fmt.Sprintf("new-%d", number))
			if _, err := n.CreateVolume(rig.Context(t), createRequest(names[number], rig.MiB)); err != nil {
				errs[err.Error()]++
			}
			select {
			case <-done:
				if number >= after {
					return
				}
			default:
			}
		}
	})
	<-begun
	do()
	close(done)
	calls.Wait()
	return names, errs
}

// is returns an error unless a call ended with the code.
func is(err error, code codes.Code) error {
	if got := codeOf(err); got != code {
		return fmt.Errorf("got %s (%v), want %s", got, err, code) //nolint:errorlint // It may be nil.
	}
	return nil
}
