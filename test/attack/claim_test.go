package attack

import (
	"errors"
	"os"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A pod that was given a whole disk writes the claim of a pool of disks on it, all that a
// disk of that pool has: nothing is offered there, and no other tenant's volume is made
// in what the pod reads.
func TestAttackClaimOnAPodsDisk(t *testing.T) {
	node, own := newNode(t), rig.NewDisk(t, 64*rig.MiB)
	target := use(t, node.NewVolume(t, "attacker", own.Path), "attacker")
	claim, err := os.ReadFile(node.disk.Path)
	rig.Must(t, err)
	rig.WriteAt(t, target, string(claim), 0)

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
