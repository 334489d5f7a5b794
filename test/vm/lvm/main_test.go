// Package lvm_test has the tests of the LVM pool, which run in a guest machine: on real
// disks, with the real lvm and a kernel that has device-mapper.
package lvm_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) {
	machine.OnlyInside()
	playScenario()
	rig.Main(m)
}

// run runs a program and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(rig.Context(t), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// groups counts the volume groups, for their names.
var groups atomic.Int32

// extent is the size of an extent of the volume groups under test.
const extent = rig.MiB

// media is a volume group on disks of its own, with a pool upon it.
type media struct {
	group, thinPool string
	disks           []*machine.Plugged
	overcommit      float64
	pool            *lvm.Pool
}

// newGroup makes a volume group of disks of the given sizes.
func newGroup(t testing.TB, blockSize int, sizes ...int64) *media {
	t.Helper()
	m := &media{group: fmt.Sprintf("vg-%d", groups.Add(1))}
	args := []string{"vgcreate", "--yes", "--physicalextentsize", fmt.Sprintf("%db", extent), m.group}
	for _, size := range sizes {
		disk := machine.Add(t, machine.Disk{Size: size, LogicalBlockSize: blockSize})
		m.disks = append(m.disks, disk)
		args = append(args, disk.Path)
	}
	run(t, "lvm", args...)
	t.Cleanup(func() {
		if m.pool != nil {
			m.pool.Close()
		}
		// A test may have taken it away.
		exec.Command("lvm", "vgremove", "--force", "--force", "--yes", m.group).Run()
	})
	return m
}

// newThin makes a volume group with a thin pool of a size.
func newThin(t testing.TB, blockSize int, size int64) *media {
	t.Helper()
	m := newGroup(t, blockSize, size+24*rig.MiB)
	m.thinPool = "tp-0"
	run(t, "lvm", "lvcreate", "--yes", "--type", "thin-pool", "--size", fmt.Sprintf("%db", size), "--name", m.thinPool, m.group)
	run(t, "lvm", "lvchange", "--errorwhenfull", "y", m.group+"/"+m.thinPool)
	return m
}

func (m *media) options() lvm.Options {
	return lvm.Options{VolumeGroup: m.group, ThinPool: m.thinPool, Overcommit: m.overcommit}
}

// Open opens the pool as a plugin does that starts.
func (m *media) Open(t testing.TB) driver.Pool {
	t.Helper()
	if m.thinPool == "" {
		return m.open(t)
	}
	return lvm.ThinPool{Pool: m.open(t)}
}

// open opens the pool, thin or not.
func (m *media) open(t testing.TB) *lvm.Pool {
	t.Helper()
	if m.pool != nil {
		m.pool.Close()
	}
	pool, err := lvm.New(klog.NewContext(t.Context(), logr.Discard()), "lvm", m.options(), program.New(os.Getenv(namespaceVariable)), blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	m.pool = pool
	return pool
}
