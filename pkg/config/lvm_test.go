package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

func TestLVM(t *testing.T) {
	for name, test := range map[string]struct {
		lvm  string
		want config.LVMPool
	}{
		"thick":        {"{volumeGroup: vg-0}", config.LVMPool{VolumeGroup: "vg-0", Overcommit: 1, Wipe: "discard"}},
		"thick, wiped": {"{volumeGroup: vg0, wipe: zero}", config.LVMPool{VolumeGroup: "vg0", Overcommit: 1, Wipe: "zero"}},
		"pinned": {
			"{volumeGroup: vg0, vgUUID: aP9NMj-5nQC-3FXa-uS25-Rf4K-nUDb-dBK81W}",
			config.LVMPool{VolumeGroup: "vg0", VGUUID: "aP9NMj-5nQC-3FXa-uS25-Rf4K-nUDb-dBK81W", Overcommit: 1, Wipe: "discard"},
		},
		"thin": {"{volumeGroup: vg0, thinPool: tp0}", config.LVMPool{VolumeGroup: "vg0", ThinPool: "tp0", Overcommit: 1, Wipe: "discard"}},
		"thin, more than there is": {
			"{thinPool: tp.0, volumeGroup: '00+', overcommit: 2.5}",
			config.LVMPool{VolumeGroup: "00+", ThinPool: "tp.0", Overcommit: 2.5, Wipe: "discard"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Parse([]byte("pools:\n- name: a\n  lvm: " + test.lvm + "\n"))
			if err != nil {
				t.Fatal(err)
			}
			want := []config.Pool{{Name: "a", LVM: &test.want}}
			if diff := cmp.Diff(want, got.Pools, ignoreLines); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLVMRefused(t *testing.T) {
	for name, test := range map[string]struct{ pools, want string }{
		"no volume group": {"- {name: a, lvm: {thinPool: tp0}}\n", "line 2: lvm has no volumeGroup; name the one"},
		"an option":       {"- {name: a, lvm: {volumeGroup: --help}}\n", `line 2: "--help" is not a name of LVM's`},
		"a path":          {"- {name: a, lvm: {volumeGroup: /dev/vg0}}\n", `line 2: "/dev/vg0" is not a name of LVM's`},
		"a parent":        {"- {name: a, lvm: {volumeGroup: ..}}\n", `line 2: ".." is not a name of LVM's`},
		"too long":        {"- {name: a, lvm: {volumeGroup: " + strings.Repeat("v", 33) + "}}\n", "is not a name of LVM's"},
		"no UUID":         {"- {name: a, lvm: {volumeGroup: vg0, vgUUID: aP9NMj}}\n", `line 2: "aP9NMj" is not a UUID of LVM's`},
		"thick overcommit": {
			"- name: a\n  lvm:\n    volumeGroup: vg0\n    overcommit: 1\n", "line 5: overcommit is for a pool with a thinPool",
		},
		"thin wipe": {
			"- name: a\n  lvm:\n    volumeGroup: vg0\n    thinPool: tp0\n    wipe: zero\n", "line 6: wipe is for a pool without a thinPool",
		},
		"two kinds": {
			"- {name: a, lvm: {volumeGroup: vg0}, disk: {match: {transport: nvme}}}\n",
			`line 2: pool "a" must be of one kind; expected one of: file, disk, lvm`,
		},
		"the same extents": {
			"- {name: a, lvm: {volumeGroup: vg0}}\n- {name: b, lvm: {volumeGroup: vg0, thinPool: tp0}}\n- name: c\n  lvm: {volumeGroup: vg0}\n",
			`line 5: pool "c" takes the same of volume group vg0 as pool "a" in line 2`,
		},
		"the same thin pool": {
			"- {name: a, lvm: {volumeGroup: vg0, thinPool: tp0}}\n- {name: b, lvm: {volumeGroup: vg0, thinPool: tp0}}\n",
			`line 3: pool "b" takes the same of volume group vg0 as pool "a" in line 2`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse([]byte("pools:\n" + test.pools))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v lacks %q", err, test.want)
			}
		})
	}
}
