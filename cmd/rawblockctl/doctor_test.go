package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Each leftover is found, and mended or left as it is, with the plugin and without; a
// healthy node has none, and healthy volumes are not touched.
func TestDoctor(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(map[bool]string{true: "plugin runs", false: "plugin is down"}[running], func(t *testing.T) {
			w := newWard(t)
			w.settleNeighbours(t)
			foreign := w.settleForeigners(t)
			w.wantHealthy(t, "at first")
			for name, s := range specimens {
				t.Run(name, func(t *testing.T) { s.test(t, w, running) })
				foreign.wantUntouched(t, "after "+name)
			}
			foreign.leave(t)
			for _, p := range w.neighbours {
				p.leave(t)
			}
			w.wantHealthy(t, "at last")
		})
	}
}

func (s specimen) test(t *testing.T, w *ward, running bool) {
	subject, restore := s.plant(t, w)
	planted := setUp(t)
	if !running {
		w.stop(t)
	}
	code, results := w.doctor(t)
	want := 1
	if s.twice {
		want = 2
	}
	if code != exitFindings || len(results) != want || results[0].Check != s.check || results[len(results)-1].Check != s.check || !slices.ContainsFunc(results, func(r result) bool { return r.Subject == subject && r.Result == found }) {
		t.Errorf("doctor ended with %d, want %s of %s alone; it found\n  %s", code, s.check, subject, describe(results))
	}
	code, results = w.doctor(t, "--fix", "--yes")
	switch {
	case len(results) == 0:
		t.Error("doctor --fix finds nothing")
	case s.stays:
		if code != exitFindings || results[0].Result == mended || !strings.Contains(results[0].Remedy, s.remedy) {
			t.Errorf("doctor --fix ended with %d, and has\n  %s\n  whose remedy is %q", code, describe(results), results[0].Remedy)
		}
	default:
		var checks []doctor.Check
		for _, one := range results {
			if one.Result != mended {
				t.Errorf("doctor --fix left\n  %s", describe(results))
			}
			checks = append(checks, one.Check)
		}
		want := append(slices.Repeat([]doctor.Check{s.check}, want), s.also...)
		if !running {
			want = append(want, s.alone...)
		}
		if code != exitDone || !slices.Equal(checks, want) {
			t.Errorf("doctor --fix ended with %d and mended %v, want %v", code, checks, want)
		}
	}
	if s.detached {
		wantDetached(t, subject, planted)
	}
	if s.healed != nil {
		s.healed(t, w, subject)
	}
	w.wantNeighbours(t, "after doctor --fix")
	if !running {
		w.start(t)
	}
	restore(t)
	w.wantHealthy(t, "afterwards")
}

// Where kubelet's pods cannot be seen, as in the plugin's container, no published volume is
// taken for left over. That it was not looked for is said, and is no finding.
func TestDoctorDoesNotSeePods(t *testing.T) {
	w := newWard(t)
	p := w.admit(t, "files", "unseen", "")
	p.publish(t, false)
	p.age(t)
	pods := filepath.Join(w.kubeletDir, "pods")
	rig.Must(t, os.Rename(pods, pods+"-elsewhere"))
	code, results := w.doctor(t, "--fix", "--yes")
	if code != exitDone || len(results) != 1 || results[0].Check != doctor.PodsUnseen || results[0].Subject != pods || results[0].Result != note {
		t.Errorf("doctor ended with %d and found %s", code, describe(results))
	}
	wantMounts(t, p.target, 1)
	if code, stdout, _ := w.ctl(t, "doctor"); code != exitDone || !strings.Contains(stdout, "was not looked at") || !strings.Contains(stdout, "nothing is wrong that could be seen") {
		t.Errorf("doctor ended with %d and printed %s", code, stdout)
	}
	if _, stdout, _ := w.ctl(t, "status"); !strings.Contains(stdout, "None is known.") {
		t.Errorf("status printed %s", stdout)
	}
	rig.Must(t, os.Rename(pods+"-elsewhere", pods))
	p.leave(t)
}

func done(*testing.T) {}

// recordsDir is the directory of the records of a volume (pkg/publish).
func (w *ward) recordsDir(volumeID string) string {
	hash := sha256.Sum256([]byte(volumeID))
	return filepath.Join(w.stateDir, hex.EncodeToString(hash[:16]))
}

func bootID(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	rig.Must(t, err)
	return strings.TrimSpace(string(text))
}

// unmounted checks that nothing is mounted at a path, nor anything there.
func wantNothingAt(t *testing.T, path string) {
	t.Helper()
	if info, err := linux.StatPath(path); err == nil {
		t.Errorf("at %s there still is %+v", path, info)
	}
}

// setUp returns the loop devices of the machine.
func setUp(t *testing.T) []blockdev.LoopDevice {
	t.Helper()
	loops, err := sysfs.LoopDevices()
	rig.Must(t, err)
	return loops
}

// wantDetached checks that a loop device that was set up before no longer is. Its number
// may be another's by now.
func wantDetached(t *testing.T, path string, before []blockdev.LoopDevice) {
	t.Helper()
	for _, now := range setUp(t) {
		if now.Path == path && slices.ContainsFunc(before, func(l blockdev.LoopDevice) bool { return l.ID == now.ID }) {
			t.Errorf("%s is still set up over %s", path, now.Backing)
		}
	}
}

// plantLoop makes a loop device over a file, with a label.
func plantLoop(t *testing.T, path, label string) string {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	rig.Must(t, err)
	defer file.Close()
	for {
		minor, err := linux.FreeLoop()
		rig.Must(t, err)
		loop, err := os.OpenFile(linux.LoopPath(minor), os.O_RDWR, 0)
		rig.Must(t, err)
		err = linux.ConfigureLoop(loop, linux.LoopConfig{Backing: file, Label: label})
		loop.Close()
		if errors.Is(err, unix.EBUSY) {
			continue // Another process was faster.
		}
		rig.Must(t, err)
		return linux.LoopPath(minor)
	}
}

// leave ends a patient's stay as kubelet does.
func (p *patient) leave(t *testing.T) {
	t.Helper()
	detachIfOver(t, p.lock, p.mapping)
	for {
		if err := unix.Unmount(p.mapping, 0); err != nil {
			break
		}
	}
	os.Remove(p.mapping)
	os.Remove(p.link)
	rig.Must(t, p.Unpublish(rig.Context(t), p.target))
	rig.Must(t, p.Unstage(rig.Context(t)))
	rig.Must(t, os.RemoveAll(filepath.Dir(filepath.Dir(p.note))))
	rig.Must(t, os.RemoveAll(filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(p.link))))))
}

// forgetPod removes kubelet's directory of the pod.
func (w *ward) forgetPod(t *testing.T, p *patient) {
	t.Helper()
	rig.Must(t, os.RemoveAll(filepath.Join(w.kubeletDir, "pods", p.pod)))
}

func wantMounts(t *testing.T, path string, want int) {
	t.Helper()
	got := 0
	for _, point := range rig.MountPoints(t) {
		if point == path {
			got++
		}
	}
	if got != want {
		t.Errorf("%d mounts at %s, want %d", got, path, want)
	}
}

func wantNoRecord(t *testing.T, w *ward, volumeID string) {
	t.Helper()
	wantNothingAt(t, w.recordsDir(volumeID))
}

func wantRecord(t *testing.T, w *ward, volumeID string) {
	t.Helper()
	if _, err := os.Readlink(w.recordsDir(volumeID) + "/device"); err != nil {
		t.Error(err)
	}
}

func wantWholeTable(t *testing.T, w *ward, _ string) {
	t.Helper()
	all, err := sysfs.Disks()
	rig.Must(t, err)
	for _, one := range all {
		if one.NodePath == w.disk.Path {
			claim, err := disk.ReadClaim(one, sysfs)
			if err != nil || claim.Primary != nil || claim.Backup != nil || claim.Pool != "disks" {
				t.Errorf("the table is %+v, %v", claim, err)
			}
		}
	}
}
