package attack

import (
	"errors"
	"os"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The same by a container that a disk was attached to while it runs: nothing is mounted.
// A loop device is held in any case; TestVMAttackAttachedDisk runs it on a SCSI disk.
func TestAttackClaimOnAnAttachedDisk(t *testing.T) {
	node, own, manager := newNode(t), rig.NewDisk(t, 64*rig.MiB), newHotAttach(t)
	ctx := rig.Context(t)
	pid, err := rig.NewContainer(t, oci.Config{CgroupV2: true}).PID(ctx)
	rig.Must(t, err)
	_, err = manager.Attach(ctx, hotplug.Request{Device: own.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb"})
	rig.Must(t, err)
	claim, err := os.ReadFile(node.disk.Path)
	rig.Must(t, err)
	rig.WriteAt(t, own.Path, string(claim), 0)
	wantNothingOffered(t, own)
}

// A pod that was given a whole disk writes the claim of a pool of disks on it, all that a
// disk of that pool has: nothing is offered there, and no other tenant's volume is made
// in what the pod reads.
func TestAttackClaimOnAPodsDisk(t *testing.T) {
	node, own := newNode(t), rig.NewDisk(t, 64*rig.MiB)
	target := use(t, node.NewVolume(t, "attacker", own.Path), "attacker")
	claim, err := os.ReadFile(node.disk.Path)
	rig.Must(t, err)
	rig.WriteAt(t, target, string(claim), 0)

	wantNothingOffered(t, own)
}

// wantNothingOffered fails the test where a pool takes a disk in.
func wantNothingOffered(t *testing.T, own *rig.Disk) {
	t.Helper()
	victims, err := disk.New(t.Context(), "disks", disk.Options{Match: disk.Selector{Paths: []string{own.Path}}}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(victims.Close)
	if capacity, err := victims.Capacity(rig.Context(t), nil); err != nil || capacity.Available != 0 {
		t.Errorf("offered on the attacker's disk: %+v, %v", capacity, err)
	}
	_, err = victims.Create(rig.Context(t), volume.Spec{Name: victimName, Size: volume.Range{Required: volumeSize}})
	if !errors.Is(err, volume.ErrExhausted) {
		t.Errorf("a victim's volume on the attacker's disk: %v", err)
	}
}
