package main

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/nodelock"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// An attachment whose disk was pulled out is told, and detached.
func TestDoctorOnALostAttachment(t *testing.T) {
	w := newWard(t)
	lost := rig.NewLoop(t, rig.MiB, 512)
	container := rig.NewContainer(t, oci.Config{})
	pid, err := container.PID(rig.Context(t))
	rig.Must(t, err)
	client := admin.NewClient(w.socket())
	attached, err := client.Attach(rig.Context(t), hotplug.Request{Device: lost.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb"})
	rig.Must(t, err)
	w.wantHealthy(t, "while it is attached")
	// A loop device that the plugin has open cannot be pulled out.
	w.stop(t)
	lost.Pull(t)
	w.start(t)
	for ctx := rig.Context(t); attached.State != hotplug.Lost; {
		// The plugin looks each ten seconds.
		rig.Must(t, ctx.Err())
		all, err := client.List(rig.Context(t))
		rig.Must(t, err)
		if len(all) != 1 {
			t.Fatalf("attached is %v", all)
		}
		attached = all[0]
		time.Sleep(50 * time.Millisecond)
	}
	// Without the plugin the attachment is told, and nothing is done.
	w.stop(t)
	code, results := w.doctor(t, "--fix", "--yes")
	if code != exitFindings || len(results) == 0 || results[0].Check == "" || !strings.Contains(describe(results), string(doctor.DeadAttachment)) {
		t.Errorf("without the plugin doctor ended with %d and found %s", code, describe(results))
	}
	w.start(t)
	code, results = w.doctor(t, "--fix", "--yes")
	if code != exitDone || len(results) != 1 || results[0].Check != doctor.DeadAttachment || results[0].Subject != attached.ID || results[0].Result != mended {
		t.Errorf("doctor ended with %d and found %s", code, describe(results))
	}
	if all, err := client.List(rig.Context(t)); err != nil || len(all) != 0 {
		t.Errorf("attached is %v, %v", all, err)
	}
	w.wantHealthy(t, "once it is detached")
}

// Without the plugin nothing is mended while another has the lock, and the plugin does
// not start while something is mended.
func TestOneProcessChangesANode(t *testing.T) {
	w := newWard(t)
	p := w.admit(t, "files", "guarded", "")
	rig.Must(t, p.Stage(rig.Context(t)))
	waiting, cancel := context.WithTimeout(rig.Context(t), 200*time.Millisecond)
	defer cancel()
	if _, err := nodelock.Take(waiting, w.stateDir); !errors.Is(err, volume.ErrAborted) || !strings.Contains(err.Error(), filepath.Join(w.stateDir, "lock")) {
		t.Errorf("beside the plugin the lock is taken: %v", err)
	}
	w.stop(t)
	lock, err := nodelock.Take(rig.Context(t), w.stateDir)
	rig.Must(t, err)
	// Kubelet forgets it.
	rig.Must(t, removeNote(p))
	_, stdout, _ := w.ctl(t, "doctor", "--fix", "--yes", "-o", "json")
	var results []result
	rig.Must(t, json.Unmarshal([]byte(stdout), &results))
	if len(results) != 1 || results[0].Result != failed || !strings.Contains(results[0].Error, "works on this node") {
		t.Errorf("while another has the lock, doctor found %s", describe(results))
	}
	released := make(chan bool)
	go func() {
		time.Sleep(time.Second)
		lock.Release()
		close(released)
	}()
	w.start(t)
	select {
	case <-released:
	default:
		t.Error("the plugin started while another had the lock")
	}
	if code, results := w.doctor(t, "--fix", "--yes"); code != exitDone {
		t.Errorf("doctor ended with %d and %s", code, describe(results))
	}
}
