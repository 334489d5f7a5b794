package blockdev_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestFreeDisk(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device := open(t, disk.Path)
	for range 2 { // The claim of the first check has been given back.
		wantFree(t, disk.Path)
	}
	// Whoever merely reads, as a monitor does, is no user.
	open(t, disk.Path)
	rig.Must(t, device.CheckFree())
}

func TestMountedDisk(t *testing.T) {
	disk := rig.NewDisk(t, 8*rig.MiB)
	place := mkfsAndMount(t, disk.Path)
	wantInUse(t, disk.Path, "mounted at "+place+"; unmount it")
	rig.Must(t, unix.Unmount(place, 0))
	wantFree(t, disk.Path)
}

// A mounted partition takes the disk with it, but not the partition beside it.
func TestDiskWithMountedPartition(t *testing.T) {
	disk := rig.NewDisk(t, 16*rig.MiB)
	first, second := disk.AddPartition(t, 1), disk.AddPartition(t, 2)
	for _, path := range []string{disk.Path, first, second} {
		wantFree(t, path)
	}
	place := mkfsAndMount(t, first)
	for _, path := range []string{disk.Path, first} {
		wantInUse(t, path, "mounted at "+place)
	}
	wantFree(t, second)
}

// The disk that is claimed as a whole takes its partitions with it.
func TestPartitionOfAMountedDisk(t *testing.T) {
	disk := rig.NewDisk(t, 16*rig.MiB)
	place := mkfsAndMount(t, disk.Path)
	wantInUse(t, disk.AddPartition(t, 1), "mounted at "+place)
}

func TestSwap(t *testing.T) {
	disk := rig.NewDisk(t, 16*rig.MiB)
	partition := disk.AddPartition(t, 1)
	// While it is open, udev does not have the kernel read the table again, which does
	// not have the partition, when somebody has written to the disk.
	open(t, partition)
	for _, path := range []string{partition, disk.Path} {
		run(t, "mkswap", path)
		run(t, "swapon", path)
		t.Cleanup(func() { exec.CommandContext(context.Background(), "swapoff", path).Run() }) //nolint:errcheck // The test has done so, if it got there.
		for _, part := range []string{disk.Path, partition} {
			wantInUse(t, part, "used as swap; end that with swapoff "+path)
		}
		run(t, "swapoff", path)
		wantFree(t, disk.Path)
	}
}

func TestClaimedByAProgram(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	program, err := os.OpenFile(disk.Path, os.O_RDONLY|unix.O_EXCL, 0)
	rig.Must(t, err)
	wantInUse(t, disk.Path, "claimed exclusively by the kernel or another program")
	rig.Must(t, program.Close())
	wantFree(t, disk.Path)
}

func wantFree(t *testing.T, path string) {
	t.Helper()
	if err := checkFree(t, path); err != nil {
		t.Errorf("%s: %v", path, err)
	}
}

func wantInUse(t *testing.T, path, says string) {
	t.Helper()
	err := checkFree(t, path)
	if !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
		t.Errorf("%s: got %v; want %v with its path and %q", path, err, volume.ErrInUse, says)
	}
}

func checkFree(t *testing.T, path string) error {
	t.Helper()
	device, err := blockdev.Open(path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	return device.CheckFree()
}

// mkfsAndMount mounts a new filesystem on the device until the test ends, and
// returns where.
func mkfsAndMount(t *testing.T, path string) string {
	t.Helper()
	run(t, "mkfs.ext4", "-q", path)
	place := t.TempDir()
	rig.Must(t, unix.Mount(path, place, "ext4", 0, ""))
	t.Cleanup(func() { rig.UnmountAll(t, place) })
	return place
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}
