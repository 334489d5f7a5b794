package ioerrors

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// mapping is a device-mapper device over a disk, whose table the test changes.
type mapping struct {
	name    string
	path    string
	below   *machine.Plugged
	sectors int64
}

func newMapping(t *testing.T, name string, size int64) *mapping {
	t.Helper()
	m := &mapping{name: "errors-" + name, below: machine.Add(t, machine.Disk{Size: size, WWN: 0x5000c50000002000}), sectors: size / 512}
	m.path = "/dev/mapper/" + m.name
	run(t, "dmsetup", "create", m.name, "--table", m.linear(0, m.sectors))
	t.Cleanup(func() {
		m.set(t, m.linear(0, m.sectors))
		run(t, "dmsetup", "remove", "--retry", m.name)
	})
	rig.Eventually(t, func() error {
		_, err := os.Stat(m.path)
		return err
	})
	return m
}

// linear is the row of a table for so many sectors of the disk itself.
func (m *mapping) linear(start, length int64) string {
	return fmt.Sprintf("%d %d linear %s %d", start, length, m.below.Path, start)
}

// set gives the mapping another table, while it is in use.
func (m *mapping) set(t *testing.T, rows ...string) {
	t.Helper()
	table := filepath.Join(t.TempDir(), "table")
	rig.Must(t, os.WriteFile(table, []byte(strings.Join(rows, "\n")+"\n"), 0o600))
	run(t, "dmsetup", "suspend", "--noflush", "--nolockfs", m.name)
	run(t, "dmsetup", "load", m.name, table)
	run(t, "dmsetup", "resume", m.name)
}

func run(t *testing.T, command ...string) {
	t.Helper()
	if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", command, err, output)
	}
}

// A mapped device begins to fail, wholly or now and then, under a pod of a volume of
// an administrator, and works again.
func TestMappingFails(t *testing.T) {
	m := newMapping(t, "vol", 64*rig.MiB)
	n := open(t, disk.Options{})
	other := machine.Add(t, machine.Disk{Size: 64 * rig.MiB, WWN: 0x5000c50000002001})
	bystander := n.NewVolume(t, "bystander", other.Path)
	beside, besideTarget := startPod(t, bystander)
	for name, row := range map[string]string{
		"error":  fmt.Sprintf("0 %d error", m.sectors),
		"flakey": fmt.Sprintf("0 %d flakey %s 0 0 60", m.sectors, m.below.Path),
	} {
		t.Run(name, func(t *testing.T) {
			volume, ctx := n.NewVolume(t, "vol-"+name, m.path), rig.Context(t)
			pod, target := startPod(t, volume)
			m.set(t, row)
			err := pod.WaitForError(t)
			if t.Logf("The pod sees: %v.", err); !isDiskError(err) {
				t.Error("that is not an error of a disk")
			}
			for _, err := range []error{volume.Stage(ctx), volume.Publish(ctx, target)} {
				// What has an error target was taken away on purpose, and is handed out no more.
				if refused := status.Code(err) == codes.FailedPrecondition; refused != (name == "error") || err != nil && !refused {
					t.Errorf("the plugin says: %v", err)
				}
			}
			beside.WaitForMore(t)
			m.set(t, m.linear(0, m.sectors))
			healed := rig.StartWriter(t, target)
			m.set(t, row)
			healed.WaitForError(t)
			tearDown(t, volume, target) // Both pods hold it open.
			pod.Close()
			healed.Close()
			m.set(t, m.linear(0, m.sectors))
		})
	}
	beside.WaitForMore(t)
	beside.Close()
	tearDown(t, bystander, besideTarget)
}

// One copy of the partition table of a disk of the pool lies on blocks that cannot be
// read or written. A pool takes no mapped devices, so a loop device is between.
func TestTableOnBadBlocks(t *testing.T) {
	const size = 64 * rig.MiB
	m := newMapping(t, "table", size)
	path := overLoop(t, m.path)
	options := disk.Options{Match: disk.Selector{Paths: []string{path}}}
	n := open(t, options)
	n.waitForDisks(t, 1)
	volume := n.provision(t, "vol", 8*rig.MiB)
	n.pool.Close()
	const bad = 40 // As many sectors as a copy has, and a few.
	for _, test := range []struct {
		name    string
		rows    []string
		usable  bool
		refused string
	}{
		{"primary", []string{fmt.Sprintf("0 %d error", bad), m.linear(bad, m.sectors-bad)}, false, "cannot be read"},
		{"backup", []string{m.linear(0, m.sectors-bad), fmt.Sprintf("%d %d error", m.sectors-bad, bad)}, true, ""},
		{"both", []string{fmt.Sprintf("0 %d error", bad), m.linear(bad, m.sectors-2*bad), fmt.Sprintf("%d %d error", m.sectors-bad, bad)}, false, "the partition table cannot be read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m.set(t, test.rows...)
			again := open(t, options)
			defer again.pool.Close()
			state, reason := again.refusal(t, filepath.Base(path))
			t.Logf("The pool says: %s: %s.", state, reason)
			if !test.usable && (state != "failed" || !mentions(reason) || !strings.Contains(reason, test.refused)) {
				t.Errorf("the disk is %s: %s", state, reason)
			}
			device, err := again.pool.Activate(rig.Context(t), "vol")
			if err == nil {
				device.Close()
			}
			if (err == nil) != test.usable {
				t.Errorf("its volume is activated with %v", err)
			}
			if err := again.remove(rig.Context(t), volume); err == nil {
				t.Error("its volume is deleted")
			}
			m.set(t, m.linear(0, m.sectors))
		})
	}
	again := open(t, options)
	again.waitForDisks(t, 1)
	rig.Must(t, again.remove(rig.Context(t), volume))
	again.waitForDisks(t, 1)
	again.pool.Close()
}

// overLoop makes a loop device over a block device.
func overLoop(t *testing.T, path string) string {
	t.Helper()
	backing, err := os.OpenFile(path, os.O_RDWR, 0)
	rig.Must(t, err)
	defer backing.Close()
	minor, err := linux.FreeLoop()
	rig.Must(t, err)
	loop, err := os.OpenFile(linux.LoopPath(minor), os.O_RDWR, 0)
	rig.Must(t, err)
	rig.Must(t, linux.ConfigureLoop(loop, linux.LoopConfig{Backing: backing, DirectIO: true}))
	t.Cleanup(func() {
		forgetPartitions(t, linux.LoopPath(minor))
		rig.Must(t, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0))
		loop.Close()
	})
	return linux.LoopPath(minor)
}

func forgetPartitions(t *testing.T, path string) {
	t.Helper()
	device, err := blockdev.Open(path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	partitions, err := sysfs.Partitions(device.Number())
	rig.Must(t, err)
	for _, partition := range partitions {
		rig.Eventually(t, func() error { return device.DeletePartition(partition.Index) })
	}
}
