package blockdev_test

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// partitions lists the partitions of a disk by index, without their numbers,
// which the kernel chooses.
func partitions(t *testing.T, disk linux.DeviceNumber) []blockdev.Partition {
	t.Helper()
	found, err := sysfs.Partitions(disk)
	rig.Must(t, err)
	slices.SortFunc(found, func(a, b blockdev.Partition) int { return cmp.Compare(a.Index, b.Index) })
	for i := range found {
		found[i].Number = linux.DeviceNumber{}
	}
	return found
}

func TestPartitionsOfADisk(t *testing.T) {
	for _, blockSize := range []uint32{512, 4096} {
		disk := rig.NewDiskWithBlockSize(t, 16*rig.MiB, blockSize)
		device := open(t, disk.Path)
		t.Cleanup(func() { device.DeletePartition(2); device.DeletePartition(100) })
		rig.Must(t, device.AddPartition(2, rig.MiB, 3*rig.MiB))
		rig.Must(t, device.AddPartition(100, 8*rig.MiB, rig.MiB))
		rig.Must(t, device.ResizePartition(100, 8*rig.MiB, 2*rig.MiB))
		want := []blockdev.Partition{
			{Disk: disk.Number(), Index: 2, Start: rig.MiB, Size: 3 * rig.MiB},
			{Disk: disk.Number(), Index: 100, Start: 8 * rig.MiB, Size: 2 * rig.MiB},
		}
		if diff := gocmp.Diff(want, partitions(t, disk.Number())); diff != "" {
			t.Errorf("blocks of %d (-want +got):\n%s", blockSize, diff)
		}
		got, err := open(t, disk.PartitionPath(100)).Partition()
		rig.Must(t, err)
		got.Number = linux.DeviceNumber{}
		if got != want[1] {
			t.Errorf("got %+v, want %+v", got, want[1])
		}
		if _, err := device.Partition(); !errors.Is(err, volume.ErrMismatch) {
			t.Errorf("the disk itself: %v, want %v", err, volume.ErrMismatch)
		}
		rig.Must(t, device.DeletePartition(2))
		rig.Must(t, device.DeletePartition(2))
		if diff := gocmp.Diff(want[1:], partitions(t, disk.Number())); diff != "" {
			t.Errorf("blocks of %d (-want +got):\n%s", blockSize, diff)
		}
		if err := device.DeletePartition(100); !errors.Is(err, volume.ErrInUse) {
			t.Errorf("delete what is open: %v, want %v", err, volume.ErrInUse)
		}
		if err := device.AddPartition(1, 9*rig.MiB, rig.MiB); !errors.Is(err, volume.ErrInUse) {
			t.Errorf("add over another: %v, want %v", err, volume.ErrInUse)
		}
	}
}

func TestPartitionsOfADiskThatHasGone(t *testing.T) {
	if _, err := sysfs.Partitions(linux.DeviceNumber{Major: linux.LoopMajor, Minor: 1<<20 - 1}); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("got %v, want %v", err, volume.ErrNotFound)
	}
}

// What the kernel says and cannot be understood is an error, never a partition.
func TestMalformedPartition(t *testing.T) {
	part := tree{"dev": "8:1\n", "partition": "1\n", "start": "2048\n", "size": "4096\n"}
	for name, change := range map[string]tree{"dev": {"dev": "8"}, "partition": {"partition": "x"}, "start": {"start": "-1"}, "size": {"size": ""}} {
		malformed := tree{"dev/block/8:0": "-> ../../devices/sda", "devices/sda/dev": "8:0"}.with("devices/sda/sda1", part).with("devices/sda/sda1", change)
		if _, err := malformed.write(t).Partitions(linux.DeviceNumber{Major: 8}); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
