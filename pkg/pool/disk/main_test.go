package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(scenarioVariable); path != "" {
		options := disk.Options{Match: disk.Selector{Paths: []string{path}}}
		if err := scenario(context.Background(), options, func(*disk.Pool) error { return nil }); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	rig.Main(m)
}

var sysfs = blockdev.NewSysfs("/sys")

// A disk of diskSize bytes has roomSize for volumes: all but the claim with what is
// before it, and the last unit with the backup of the table.
const (
	diskSize = 40 * rig.MiB
	roomSize = diskSize - 3*rig.MiB
)

// match chooses the disks by their nodes.
func match(disks ...*rig.Disk) disk.Options {
	var options disk.Options
	for _, d := range disks {
		options.Match.Paths = append(options.Match.Paths, d.Path)
	}
	return options
}

// newPool returns a pool that has wiped what it adopted.
func newPool(t *testing.T, options disk.Options) *disk.Pool {
	t.Helper()
	pool := openPool(t, "fast", options)
	waitForWipe(t, pool)
	return pool
}

func openPool(t *testing.T, name string, options disk.Options) *disk.Pool {
	t.Helper()
	pool, err := disk.New(quiet(t), name, options, sysfs)
	rig.Must(t, err)
	t.Cleanup(func() { closePool(t, pool, options) })
	return pool
}

// quiet is a context whose logger says nothing.
func quiet(t *testing.T) context.Context { return klog.NewContext(rig.Context(t), klog.Logger{}) }

// closePool ends a pool and has the kernel forget the partitions of its disks,
// which outlive it.
func closePool(t *testing.T, pool *disk.Pool, options disk.Options) {
	t.Helper()
	pool.Close()
	for _, path := range options.Match.Paths {
		forgetPartitions(t, path)
	}
}

func forgetPartitions(t testing.TB, path string) {
	t.Helper()
	device, err := blockdev.Open(path, sysfs)
	if errors.Is(err, volume.ErrNotFound) {
		return
	}
	rig.Must(t, err)
	defer device.Close()
	partitions, err := sysfs.Partitions(device.Number())
	rig.Must(t, err)
	for _, partition := range partitions {
		rig.Eventually(t, func() error { return device.DeletePartition(partition.Index) })
	}
}

func waitForWipe(t *testing.T, pool *disk.Pool) {
	t.Helper()
	rig.Eventually(t, func() error {
		for _, d := range pool.Status().Disks {
			if len(d.Wiping) > 0 {
				return errors.New("the pool does not end its wiping")
			}
		}
		return nil
	})
}

func size(bytes uint64) volume.Range { return volume.Range{Required: bytes} }

func create(t *testing.T, pool *disk.Pool, name string, bytes uint64, parameters ...string) {
	t.Helper()
	info, err := pool.Create(rig.Context(t), spec(name, bytes, parameters...))
	rig.Must(t, err)
	if info != (volume.Info{Name: name, Size: bytes}) {
		t.Fatalf("created %+v, want %s of %d bytes", info, name, bytes)
	}
}

// spec returns that of a volume with a wipe, if one is given.
func spec(name string, bytes uint64, wipe ...string) volume.Spec {
	spec := volume.Spec{Name: name, Size: size(bytes), Parameters: map[string]string{}}
	for _, method := range wipe {
		spec.Parameters["wipe"] = method
	}
	return spec
}

// activate returns the path of the device of a volume.
func activate(t *testing.T, pool *disk.Pool, name string) string {
	t.Helper()
	device, err := pool.Activate(rig.Context(t), name)
	rig.Must(t, err)
	defer device.Close()
	return device.Node().Name()
}

// fill writes all of a volume.
func fill(t *testing.T, pool *disk.Pool, name string, char string) {
	t.Helper()
	info, err := pool.Get(rig.Context(t), name)
	rig.Must(t, err)
	rig.WriteAt(t, activate(t, pool, name), strings.Repeat(char, int(info.Size)), 0)
}

// wantFilled checks all of a volume.
func wantFilled(t *testing.T, pool *disk.Pool, name string, char string) {
	t.Helper()
	info, err := pool.Get(rig.Context(t), name)
	rig.Must(t, err)
	device, err := pool.Activate(rig.Context(t), name)
	rig.Must(t, err)
	defer device.Close()
	raw, err := device.Raw(0)
	rig.Must(t, err)
	defer raw.Close()
	data := make([]byte, info.Size)
	_, err = raw.ReadAt(data, 0)
	rig.Must(t, err)
	if !bytes.Equal(data, bytes.Repeat([]byte(char), len(data))) {
		t.Errorf("volume %s has other data than all %q", name, char)
	}
}

func wantError(t *testing.T, err, want error, says string) {
	t.Helper()
	if !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("got %v; want %v and the words %q", err, want, says)
	}
}

func wantCapacity(t *testing.T, pool *disk.Pool, want volume.Capacity, wipe ...string) {
	t.Helper()
	got, err := pool.Capacity(rig.Context(t), spec("", 0, wipe...).Parameters)
	rig.Must(t, err)
	if got != want {
		t.Errorf("capacity %+v, want %+v", got, want)
	}
}

// wantRefused checks why the disk is not in the pool.
func wantRefused(t *testing.T, pool *disk.Pool, d *rig.Disk, state, says string) {
	t.Helper()
	status := pool.Status()
	for _, refused := range status.Refused {
		if "/dev/"+refused.Name == d.Path && refused.State == state && strings.Contains(refused.Reason, says) {
			return
		}
	}
	t.Errorf("%s is not %s with %q: %+v", d.Path, state, says, status)
}

// readTable returns the table that is on a disk.
func readTable(t *testing.T, d *rig.Disk) gpt.Found {
	t.Helper()
	var found gpt.Found
	withRaw(t, d.Path, 0, func(raw *linux.Raw, size, block uint64) {
		var err error
		found, err = gpt.Read(raw, size, block)
		rig.Must(t, err)
	})
	return found
}

// writeTable changes the table of a disk that is in no pool.
func writeTable(t *testing.T, d *rig.Disk, change func(*gpt.Table)) {
	t.Helper()
	found := readTable(t, d)
	change(&found.Table)
	withRaw(t, d.Path, linux.RawWrite, func(raw *linux.Raw, _, _ uint64) { rig.Must(t, gpt.Format(raw, &found.Table)) })
}

func withRaw(t *testing.T, path string, mode linux.RawMode, do func(raw *linux.Raw, size, block uint64)) {
	t.Helper()
	device, err := blockdev.Open(path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	raw, err := device.Raw(mode)
	rig.Must(t, err)
	defer raw.Close()
	block, err := linux.LogicalBlockSize(raw)
	rig.Must(t, err)
	do(raw, device.Size(), uint64(block))
}

// wantZero checks that a range of what the disk is made of reads zero.
func wantZero(t *testing.T, d *rig.Disk, from, to int64) {
	t.Helper()
	data, err := os.ReadFile(d.Backing)
	rig.Must(t, err)
	if !bytes.Equal(data[from:to], make([]byte, to-from)) {
		t.Errorf("there is data left from %d to %d", from, to)
	}
}
