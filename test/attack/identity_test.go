package attack

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Who may make a PersistentVolume, or calls the plugin, spells the ID of a volume so that
// it names another node: it is deleted under the pod that has it.
func TestAttackIdentityDeletesByAnotherSpelling(t *testing.T) {
	for _, pool := range poolKinds {
		t.Run(pool, func(t *testing.T) {
			node := newNode(t)
			target := use(t, node.create(t, pool, victimName), "victim")
			rig.WriteAt(t, target, secret, 0)
			number := deviceAt(t, target)
			refused(t, "DeleteVolume", node.remove(rig.Context(t), pool+"/"+victimName+"@other"), codes.FailedPrecondition)
			holds(t, target, number)
			for _, id := range spellings(pool) {
				if err := node.remove(rig.Context(t), id); err != nil && status.Code(err) != codes.FailedPrecondition {
					t.Errorf("DeleteVolume of %s: %v", id, err)
				}
				holds(t, target, number)
			}
		})
	}
}

// spellings are IDs that look like that of the victim, or are cut to it somewhere.
func spellings(pool string) []string {
	end := "@" + rig.NodeID
	return []string{
		pool + "/" + strings.ToUpper(victimName) + end,
		pool + "/" + strings.Replace(victimName, "pvc-", "PVC-", 1) + end,
		pool + "/pvc-" + strings.ReplaceAll(strings.TrimPrefix(victimName, "pvc-"), "-", "") + end,
		pool + "/" + victimName + "7" + end,
		pool + "/" + victimName + "." + end,
		pool + "/" + victimName[:len(victimName)-1] + end,
		pool + "/" + victimName + "@" + strings.ToUpper(rig.NodeID),
		pool + "/" + victimName + "@*",
	}
}

// The same spelling is staged in a way that is refused, and unstaged: that gives up the
// device under the pod, whose number the next tenant's volume gets.
func TestAttackIdentityDetachesByAnotherSpelling(t *testing.T) {
	for _, pool := range poolKinds {
		t.Run(pool, func(t *testing.T) {
			node, ctx := newNode(t), rig.Context(t)
			target := use(t, node.create(t, pool, victimName), "victim")
			rig.WriteAt(t, target, secret, 0)
			number := deviceAt(t, target)
			for _, id := range append(spellings(pool), pool+"/"+victimName+"@other") {
				attacker := node.Provisioned(t, id)
				attacker.Context = map[string]string{"encryption": "luks2"}
				if err := attacker.Stage(ctx); err == nil {
					t.Errorf("%s was staged as an encrypted volume", id)
				}
				holds(t, target, number)
				attacker.Context = nil
				attacker.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
				if err := attacker.Stage(ctx); err == nil {
					t.Errorf("%s was staged with another access mode beside the victim", id)
				}
				if err := attacker.Publish(ctx, attacker.Target(t, "attacker")); err == nil {
					t.Errorf("%s was published beside the victim", id)
				}
				attacker.Unstage(ctx) //nolint:errcheck // Whatever it answers.
				holds(t, target, number)
			}
			tenant := use(t, node.create(t, pool, "next-tenant"), "next")
			if got := deviceAt(t, tenant); got == number {
				t.Errorf("the next tenant has the device %#x of the victim", got)
			}
			holds(t, target, number)
		})
	}
}

// The author of a PersistentVolume gives it the form of a pool's ID, and a device of his
// own. When it is unstaged, the volume of the pool is meant.
func TestAttackIdentityIsAnotherVolumesHandle(t *testing.T) {
	for _, pool := range poolKinds {
		for _, where := range []string{"other", rig.NodeID} {
			t.Run(pool+" "+where, func(t *testing.T) {
				node, ctx := newNode(t), rig.Context(t)
				target := use(t, node.create(t, pool, victimName), "victim")
				rig.WriteAt(t, target, secret, 0)
				number := deviceAt(t, target)
				attacker := node.NewVolume(t, pool+"/"+victimName+"@"+where, rig.NewDisk(t, rig.MiB).Path)
				refused(t, "NodeStageVolume", attacker.Stage(ctx), codes.InvalidArgument)
				refused(t, "NodePublishVolume", attacker.Publish(ctx, attacker.Target(t, "attacker")), codes.InvalidArgument)
				attacker.Unstage(ctx) //nolint:errcheck // Whatever it answers.
				holds(t, target, number)
			})
		}
	}
}
