package disk

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// What a pool says of what it knows: disks that fail, and sysfs, are described, since
// a loop device does none of this. On real disks it is tried in test/vm/health.
func TestHealth(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{"/dev": "8:0\n", "/diskseq": "3\n"} {
		if err := errors.Join(os.MkdirAll(root+"/dev/block/8:0", 0o700), os.WriteFile(root+"/dev/block/8:0"+path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	there := blockdev.Disk{Number: linux.DeviceNumber{Major: 8}, DiskSeq: 3, NodePath: "/dev/sda"}
	replaced := blockdev.Disk{Number: linux.DeviceNumber{Major: 8}, DiskSeq: 2, NodePath: "/dev/sdb"}
	wiping := func(err error) Status {
		return Status{Disks: []Member{{Path: "/dev/sda", Wiping: []Wiping{{Start: 1 << 20, Size: 5 << 20, Err: err}}}}}
	}
	for name, test := range map[string]struct {
		known known
		want  []string
	}{
		"well":        {known{disks: []blockdev.Disk{there}, status: Status{Disks: []Member{{Free: 1}}}}, nil},
		"wipe fails":  {known{status: wiping(errors.New("EIO"))}, []string{"WipeFailing: pool p: the space of 5242880 bytes at 1048576 of /dev/sda cannot be wiped and is not offered: EIO"}},
		"wiping":      {known{status: wiping(nil)}, []string{"ReclaimPending: pool p: nothing is free before"}},
		"gone":        {known{disks: []blockdev.Disk{replaced}}, []string{"DiskGone: pool p: the disk /dev/sdb has gone"}},
		"let go":      {known{lost: []*lost{{disk: blockdev.Disk{NodePath: "/dev/sdc", Serial: "S1"}, names: []string{"a", "b"}}}}, []string{"DiskGone: pool p: the disk /dev/sdc, serial S1, which has the volumes a, b, has gone"}},
		"not adopted": {known{status: Status{Refused: []Refused{{"sdd", "occupied", "data"}, {"sde", "busy", "in use"}, {"sdf", "unmatched", ""}}}}, nil},
		"refused": {
			known{status: Status{Refused: []Refused{{"sdd", "failed", "EIO"}, {"sde", "twin", "a copy"}, {"sdf", "unreadable", "x"}}}},
			[]string{"DiskRefused: pool p: the disk sdd is not in the pool (failed): EIO", "DiskRefused: pool p: the disk sde ", "DiskRefused: pool p: the disk sdf "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := &Pool{name: "p", sysfs: blockdev.NewSysfs(root)}
			p.known.Store(&test.known)
			conditions, devices, err := p.Health(t.Context())
			var got []string
			for _, condition := range conditions {
				got = append(got, fmt.Sprintf("%s: %s", condition.Reason, condition.Message))
				if condition.Severity != volume.Degraded {
					t.Errorf("%s is of the severity %d: one disk is not the pool", condition.Reason, condition.Severity)
				}
			}
			if err != nil || !slices.EqualFunc(got, test.want, strings.HasPrefix) {
				t.Errorf("got %q, %v, want these beginnings: %q", got, err, test.want)
			}
			if isThere := name == "well"; isThere != (len(devices) == 1) {
				t.Errorf("devices: %v", devices)
			}
		})
	}
}

// A volume on a disk that has gone is told of, and named, until the disk is back.
func TestVolumesOfADiskThatHasGone(t *testing.T) {
	p := &Pool{name: "p", sysfs: blockdev.NewSysfs(t.TempDir()), lost: map[gpt.GUID]*lost{}}
	m := &member{disk: blockdev.Disk{NodePath: "/dev/sda"}, table: gpt.Table{Disk: gpt.NewGUID()}}
	m.table.Entries[0] = newClaim("p")
	m.table.Entries[1] = newVolume("p", "vol", wipeZero, space{unit * 2, unit * 3})
	p.lose(m)
	p.show()
	found, devices, err := p.VolumeHealth(t.Context(), "vol")
	if err != nil || len(devices) > 0 || len(found) != 1 || found[0].Severity != volume.Inaccessible || found[0].Reason != volume.DeviceGone {
		t.Errorf("got %v, %v, %v", found, devices, err)
	}
	if got := p.Missing(); !slices.Equal(got, []string{"vol"}) {
		t.Errorf("missing: %v", got)
	}
	p.regain(m.table.Disk)
	p.show()
	if got := p.Missing(); len(got) > 0 {
		t.Errorf("missing: %v", got)
	}
}
