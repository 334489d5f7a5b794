package lvm_test

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// loot is the size of an attacker's volume.
const loot = 64 * rig.MiB

// handOut makes a volume of a pool, and returns the node that its tenant has.
func handOut(t *testing.T, pool driver.Pool, name string) string {
	t.Helper()
	ctx := rig.Context(t)
	eventually(t, "space that is wiped", func() bool {
		capacity, err := pool.Capacity(ctx, nil)
		rig.Must(t, err)
		return capacity.MaxVolume >= loot
	})
	_, err := pool.Create(ctx, volume.Spec{Name: name, Size: sized(loot)})
	rig.Must(t, err)
	device, err := pool.Activate(ctx, name)
	rig.Must(t, err)
	path, err := blockdev.NewSysfs("/sys").NodePath(device.Number())
	rig.Must(t, err)
	device.Close()
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		pool.Deactivate(ctx, name)
		pool.Delete(ctx, name)
	})
	return path
}

func filePool(t *testing.T) driver.Pool {
	t.Helper()
	pool, err := file.New(quiet(t), "files", file.Options{Directory: t.TempDir(), Capacity: 4 * loot}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func diskPool(t *testing.T) driver.Pool {
	t.Helper()
	d := machine.Add(t, machine.Disk{Size: 3 * loot})
	pool, err := disk.New(quiet(t), "disks", disk.Options{Match: disk.Selector{Paths: []string{d.Path}}}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// writeGroup writes a volume group, as a tenant can in his pod: he has one device.
func writeGroup(t *testing.T, name, path string) {
	t.Helper()
	// A pod does not need the host's lvm for it, nor its settings.
	const own = "devices{scan_lvs=1}"
	run(t, "lvm", "vgcreate", "--yes", "--config", own, "--devices", path, "--physicalextentsize", "1m", name, path)
	t.Cleanup(func() {
		exec.Command("lvm", "vgremove", "--force", "--force", "--yes", "--config", own, "--devices", path, name).Run()
		exec.Command("lvm", "pvremove", "--force", "--force", "--yes", "--config", own, "--devices", path, path).Run()
	})
}

// wantNothing checks that nobody's volume was made in the attacker's group.
func wantNothing(t *testing.T, name, path string) {
	t.Helper()
	output := run(t, "lvm", "lvs", "--config", "devices{scan_lvs=1}", "--devices", path, "--noheadings", "--options", "lv_name,lv_tags", name)
	if strings.TrimSpace(output) != "" {
		t.Errorf("in the attacker's %s is %s", path, output)
	}
}

// On a node without the volume group, what a tenant wrote is not taken for it: nothing is
// offered, nothing is made, and the reason names the device.
func TestAttackGroupWhereThereIsNone(t *testing.T) {
	for kind, pool := range map[string]driver.Pool{"file": filePool(t), "partition": diskPool(t), "logical volume": newGroup(t, 512, 3*loot).open(t)} {
		t.Run(kind, func(t *testing.T) {
			const name = "victims"
			path := handOut(t, pool, "attacker")
			writeGroup(t, name, path)
			victim, err := lvm.New(quiet(t), "victims", lvm.Options{VolumeGroup: name}, program.New(""), blockdev.NewSysfs("/sys"))
			rig.Must(t, err)
			defer victim.Close()
			if got := available(t, victim); got != 0 {
				t.Errorf("%d bytes are offered on the attacker's %s", got, path)
			}
			_, err = victim.Create(rig.Context(t), volume.Spec{Name: "victim", Size: sized(size)})
			if !errors.Is(err, volume.ErrExhausted) {
				t.Errorf("a victim's volume was made on the attacker's %s: %v", path, err)
			}
			t.Log(err)
			wantNothing(t, name, path)
		})
	}
}

// On a node that has the volume group, a second one of its name that a tenant wrote takes
// nothing down, and nothing is made in it.
func TestAttackGroupBesideTheRealOne(t *testing.T) {
	m := newGroup(t, 512, 5*loot)
	pool := m.open(t)
	before := available(t, pool)
	paths := map[string]string{"file": handOut(t, filePool(t), "attacker"), "partition": handOut(t, diskPool(t), "attacker")}
	for _, path := range paths {
		writeGroup(t, m.group, path)
	}
	if got := available(t, pool); got != before {
		t.Errorf("%d bytes are offered, and %d were before the attack", got, before)
	}
	create(t, pool, "victim", size)
	data := node(t, pool, "victim")
	rig.Must(t, fill(data, 'v', 0, size))
	for _, path := range paths {
		wantNothing(t, m.group, path)
	}
	if output := run(t, "lvm", "lvs", "--devices", m.disks[0].Path, "--noheadings", "--options", "lv_tags", m.group); !strings.Contains(output, "rawblock.volume=lvm/victim") {
		t.Errorf("the volume group has %q", output)
	}
	_, err := pool.Expand(rig.Context(t), "victim", sized(2*size))
	rig.Must(t, err)
	rig.Must(t, pool.Deactivate(rig.Context(t), "victim"))
	rig.Must(t, pool.Delete(rig.Context(t), "victim"))
}
