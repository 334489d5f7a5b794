package lvm

import (
	"errors"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// What is the pool's is refused, and a logical volume of its group that is not, is taken.
func TestCheckForeign(t *testing.T) {
	g := group{Group: lvm.Group{Name: "vg", UUID: "aaaa-bb"}, pool: "p", entries: []entry{
		{Volume: lvm.Volume{Name: "one", UUID: "cccc-dd"}}, {Volume: lvm.Volume{Name: "space", UUID: "eeee-ff"}, record: record{kind: spaceKind}},
	}}
	disk, other, mapping := linux.DeviceNumber{Major: 8}, linux.DeviceNumber{Major: 8, Minor: 16}, linux.DeviceNumber{Major: 253}
	lv := func(uuid string) blockdev.Layer { return blockdev.Layer{Number: mapping, MapperUUID: uuid} }
	for name, test := range map[string]struct {
		layers []blockdev.Layer
		want   error
	}{
		"volume":                   {[]blockdev.Layer{lv("LVM-aaaabbccccdd"), {Number: disk}}, volume.ErrInUse},
		"a part of a volume":       {[]blockdev.Layer{lv("LVM-aaaabbccccdd-real")}, volume.ErrInUse},
		"space":                    {[]blockdev.Layer{lv("LVM-aaaabbeeeeff")}, volume.ErrInUse},
		"disk":                     {[]blockdev.Layer{{Number: disk}}, volume.ErrInUse},
		"partition of another":     {[]blockdev.Layer{{Number: other}}, nil},
		"the administrator's":      {[]blockdev.Layer{lv("LVM-aaaabb112233"), {Number: disk}}, nil},
		"of another group":         {[]blockdev.Layer{lv("LVM-zzzzzzccccdd"), {Number: other}}, nil},
		"another mapping above it": {[]blockdev.Layer{lv("CRYPT-LUKS2-x"), {Number: disk}}, volume.ErrInUse},
	} {
		t.Run(name, func(t *testing.T) {
			if err := g.checkForeign(test.layers, map[linux.DeviceNumber]bool{disk: true}); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}
