package lvm_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func quiet(t testing.TB) context.Context {
	t.Helper()
	return klog.NewContext(t.Context(), logr.Discard())
}

// Of two volume groups of one name on disks that are the host's, the one that is pinned is
// used; without a pin, neither.
func TestAttackTwoGroupsOnDisks(t *testing.T) {
	m := newGroup(t, 512, 40*rig.MiB)
	other := machine.Add(t, machine.Disk{Size: 80 * rig.MiB})
	uuid := strings.TrimSpace(run(t, "lvm", "vgs", "--noheadings", "--options", "vg_uuid", m.group))
	run(t, "lvm", "vgcreate", "--yes", "--devices", other.Path, "--physicalextentsize", "1m", m.group, other.Path)
	t.Cleanup(func() { exec.Command("lvm", "vgremove", "--yes", "--devices", other.Path, m.group).Run() })
	open := func(uuid string) *lvm.Pool {
		pool, err := lvm.New(quiet(t), "pinned", lvm.Options{VolumeGroup: m.group, UUID: uuid}, program.New(""), blockdev.NewSysfs("/sys"))
		rig.Must(t, err)
		t.Cleanup(pool.Close)
		return pool
	}
	_, err := open("").Create(rig.Context(t), volume.Spec{Name: "a", Size: sized(size)})
	wantError(t, err, volume.ErrExhausted, "create without a pin")
	if !strings.Contains(err.Error(), "vgUUID") || !strings.Contains(err.Error(), uuid) || !strings.Contains(err.Error(), other.Path) {
		t.Errorf("the reason is %v", err)
	}
	pool := open(uuid)
	create(t, pool, "a", size)
	if output := run(t, "lvm", "lvs", "--devices", m.disks[0].Path, "--noheadings", "--options", "lv_tags", m.group); !strings.Contains(output, "rawblock.volume=pinned/a") {
		t.Errorf("the pinned volume group has %q", output)
	}
	rig.Must(t, pool.Delete(rig.Context(t), "a"))
	eventually(t, "the wiping", func() bool { return len(pool.Status().Wiping) == 0 })
	_, err = open("aP9NMj-5nQC-3FXa-uS25-Rf4K-nUDb-dBK81W").Create(rig.Context(t), volume.Spec{Name: "a", Size: sized(size)})
	wantError(t, err, volume.ErrExhausted, "create with another's pin")
	if !strings.Contains(err.Error(), "which none of them has") {
		t.Errorf("the reason is %v", err)
	}
}
