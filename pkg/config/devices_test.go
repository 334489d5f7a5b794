package config_test

import (
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

func TestForgeable(t *testing.T) {
	for pattern, want := range map[config.Pattern]bool{
		"/dev/disk/by-id/*": true, "/dev/disk/by-id/dm-uuid-LVM-abc": true, "/dev/disk/by-id/[dl]*": true, "/dev/disk/*/x": true,
		"/dev/disk/by-id/?": true, "/dev/disk/by-uuid/*": true, "/dev/mapper/vg-lv": true, "/dev/md/data": true,
		"/dev/disk/by-id/nvme-*": false, "/dev/disk/by-id/dm-uuid-mpath-*": false, "/dev/disk/by-path/*": false, "/dev/sd*": false, "/dev/*": false, "/dev/loop0": false,
	} {
		got := config.Devices{Allow: []config.Pattern{pattern}}.Forgeable()
		if (len(got) == 1) != want {
			t.Errorf("%s: got %v", pattern, got)
		}
	}
	if got := config.Default().Devices.Forgeable(); len(got) > 0 {
		t.Errorf("the default has %v", got)
	}
}
