package linux_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestPartitions(t *testing.T) {
	disk := rig.NewDisk(t, 16*rig.MiB)
	whole := device(t, disk.Path)
	t.Cleanup(func() { linux.DeletePartition(whole, 3) })
	rig.Must(t, linux.AddPartition(whole, 3, 2*rig.MiB, 4*rig.MiB))
	for name, err := range map[string]error{
		"number is taken": linux.AddPartition(whole, 3, 8*rig.MiB, rig.MiB),
		"place is taken":  linux.AddPartition(whole, 4, 5*rig.MiB, 2*rig.MiB),
	} {
		if !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s: got %v, want %v", name, err, unix.EBUSY)
		}
	}
	part, err := os.Open(disk.PartitionPath(3))
	rig.Must(t, err)
	defer part.Close()
	wantSize(t, part, 4*rig.MiB)
	if err := linux.DeletePartition(whole, 3); !errors.Is(err, unix.EBUSY) {
		t.Errorf("delete while it is open: got %v, want %v", err, unix.EBUSY)
	}
	rig.Must(t, linux.ResizePartition(whole, 3, 2*rig.MiB, 6*rig.MiB))
	wantSize(t, part, 6*rig.MiB)
	rig.Must(t, part.Close())
	rig.Must(t, linux.DeletePartition(whole, 3))
	for name, err := range map[string]error{
		"delete": linux.DeletePartition(whole, 3),
		"resize": linux.ResizePartition(whole, 3, 2*rig.MiB, rig.MiB),
	} {
		if !errors.Is(err, unix.ENXIO) {
			t.Errorf("%s what is not there: got %v, want %v", name, err, unix.ENXIO)
		}
	}
}

func wantSize(t *testing.T, device linux.Descriptor, want uint64) {
	t.Helper()
	if got, err := linux.BlockSize(device); err != nil || got != want {
		t.Errorf("%s has %d bytes (%v), want %d", device.Name(), got, err, want)
	}
}
