package main

import (
	"context"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// What is known of a pool of logical volumes is the same without the plugin: lvm tells
// it. It runs in a guest machine.
func TestVMOfflineOfLVM(t *testing.T) {
	machine.Require(t)
	for _, pool := range []struct{ name, lvcreate, options string }{
		{"thin", "--type thin-pool --size 32M --name tp", ", thinPool: tp, overcommit: 2"},
		{"thick", "", ""}, // The last, as lvm does not clear up after a disk that has gone.
	} {
		t.Run(pool.name, func(t *testing.T) {
			s := &scene{ward: emptyWard(t)}
			disk, user := s.ofLVM(t, pool.lvcreate, pool.options, 4*rig.MiB)
			t.Cleanup(func() { rig.Must(t, user.takeDown(context.WithoutCancel(t.Context()), t)) })
			before := command(t, "lvm", "vgs", "--noheadings", "--options", "vg_seqno", "failing")
			for _, how := range []string{"volumes", "capacity", "inspect " + user.ID, "volumes -o json", "capacity -o json", "inspect -o json " + user.ID} {
				words := strings.Fields(how)
				_, online, _ := s.ctl(t, words...)
				code, offline, said := s.ctl(t, append(words, "--offline")...)
				if code != exitDone || strings.ReplaceAll(offline, `"source": "node"`, `"source": "plugin"`) != online {
					t.Errorf("%s, without the plugin (%d):\n%s%s\nwith it:\n%s", how, code, offline, said, online)
				}
				t.Log(offline)
			}
			if _, shown, _ := s.ctl(t, "inspect", user.ID, "--offline"); !strings.Contains(shown, "in failing/") {
				t.Errorf("inspect does not say where it is:\n%s", shown)
			}
			if after := command(t, "lvm", "vgs", "--noheadings", "--options", "vg_seqno", "failing"); after != before {
				t.Errorf("the volume group was changed: its sequence number was %s, and is %s", before, after)
			}
			if pool.name == "thin" {
				return // A thin pool whose disk has gone cannot be taken down.
			}
			disk.Unplug(t)
			code, shown, said := s.ctl(t, "status", "--offline")
			if code != exitDone || !strings.Contains(shown, "DiskGone") || !strings.Contains(shown, "this node has no volume group failing") {
				t.Errorf("without the disk (%d):\n%s%s", code, shown, said)
			}
		})
	}
}
