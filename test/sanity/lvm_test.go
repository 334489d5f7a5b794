package sanity

import (
	"os/exec"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// newLVMPool makes a pool in a volume group, of thick volumes where no thin pool is named.
func newLVMPool(t *testing.T, thinPool string) driver.Pool {
	t.Helper()
	lvmRun := func(args ...string) {
		t.Helper()
		if output, err := exec.Command("lvm", args...).CombinedOutput(); err != nil {
			t.Fatalf("lvm %v: %v\n%s", args, err, output)
		}
	}
	group := "vg0" + thinPool
	lvmRun("vgcreate", "--yes", "--physicalextentsize", "1m", group, rig.NewDisk(t, 512*rig.MiB).Path)
	t.Cleanup(func() { lvmRun("vgremove", "--force", "--force", "--yes", group) })
	options := lvm.Options{VolumeGroup: group, ThinPool: thinPool}
	sysfs, host := blockdev.NewSysfs("/sys"), program.New("")
	if thinPool == "" {
		pool, err := lvm.New(t.Context(), "pool", options, host, sysfs)
		rig.Must(t, err)
		t.Cleanup(pool.Close)
		return pool
	}
	lvmRun("lvcreate", "--yes", "--type", "thin-pool", "--size", "400m", "--name", thinPool, group)
	pool, err := lvm.NewThin(t.Context(), "pool", options, host, sysfs)
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}
