package blockdev_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What was written is not read again, and what is beside the range is as before.
func TestWipe(t *testing.T) {
	const start, size = rig.MiB, 9*rig.MiB + 4096
	for name, test := range map[string]struct {
		method    blockdev.WipeMethod
		noDiscard bool
	}{
		"discard":                     {blockdev.WipeDiscard, false},
		"discard where there is none": {blockdev.WipeDiscard, true},
		"zero":                        {blockdev.WipeZero, false},
	} {
		t.Run(name, func(t *testing.T) {
			disk := rig.NewDiskWithBlockSize(t, 12*rig.MiB, 4096)
			if test.noDiscard {
				rig.Must(t, os.WriteFile("/sys/block/"+filepath.Base(disk.Path)+"/queue/discard_max_bytes", []byte("0"), 0))
			}
			rig.WriteAt(t, disk.Path, strings.Repeat("x", 12*rig.MiB), 0)
			raw, err := open(t, disk.Path).Raw(linux.RawWrite)
			rig.Must(t, err)
			defer raw.Close()
			rig.Must(t, blockdev.Wipe(raw, test.method, start, size))
			want := strings.Repeat("x", start) + strings.Repeat("\x00", size) + strings.Repeat("x", 12*rig.MiB-start-size)
			for _, path := range []string{disk.Path, disk.Backing} {
				if rig.ReadAt(t, path, 12*rig.MiB, 0) != want {
					t.Errorf("%s: other data than zeros in the range and what was there beside it", path)
				}
			}
		})
	}
}

// Loop devices can not: that a disk which can is wiped so remains unproven here.
func TestSecureWipeOfADiskThatCannot(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	raw, err := open(t, disk.Path).Raw(linux.RawWrite)
	rig.Must(t, err)
	defer raw.Close()
	if err := blockdev.Wipe(raw, blockdev.WipeSecure, 0, 4096); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("got %v, want %v", err, unix.EOPNOTSUPP)
	}
}

func TestWipeOfADeviceThatFails(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	device := open(t, disk.Path)
	raw, err := device.Raw(linux.RawWrite)
	rig.Must(t, err)
	defer raw.Close()
	if err := blockdev.Wipe(raw, blockdev.WipeZero, 0, 2*rig.MiB); err == nil {
		t.Error("a range behind the end of the device: no error")
	}
	readOnly, err := device.Raw(0)
	rig.Must(t, err)
	defer readOnly.Close()
	if err := blockdev.Wipe(readOnly, blockdev.WipeDiscard, 0, 4096); err == nil {
		t.Error("a descriptor for reading: no error")
	}
}

func TestRawNamesTheUser(t *testing.T) {
	disk := rig.NewDisk(t, 8*rig.MiB)
	place := mkfsAndMount(t, disk.Path)
	if _, err := open(t, disk.Path).Raw(linux.RawExclusive); !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), "mounted at "+place) {
		t.Errorf("got %v, want %v with %s", err, volume.ErrInUse, place)
	}
}
