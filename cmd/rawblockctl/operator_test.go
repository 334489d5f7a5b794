package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestDriverName(t *testing.T) {
	if driverName != driver.Name {
		t.Errorf("the tool looks for volumes of %s, and the driver is %s", driverName, driver.Name)
	}
}

// What is shown is the same, whoever looks.
func TestStatusIsTheSameWithoutThePlugin(t *testing.T) {
	w := newWard(t)
	w.settleNeighbours(t)
	asked := w.status(t, fromPlugin)
	w.stop(t)
	looked := w.status(t, fromNode)
	w.start(t)
	if diff := cmp.Diff(asked, looked); diff != "" {
		t.Errorf("(-plugin +node):\n%s", diff)
	}
	if len(asked.Volumes) != 3 || asked.Volumes[0].State != inspect.Published || asked.Volumes[0].Users[0].Pod != "uid-healthy-partition" ||
		len(asked.Pools) != 2 || asked.Pools[1].Disks != 1 || len(asked.Errors)+len(asked.Findings)+len(asked.Conditions) != 0 {
		t.Errorf("status is %+v", asked)
	}
	for _, p := range w.neighbours {
		p.leave(t)
	}
}

// status returns what status tells, less who tells it and when.
func (w *ward) status(t *testing.T, source string) (got status) {
	t.Helper()
	code, stdout, stderr := w.ctl(t, "status", "-o", "json")
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != exitDone || got.Source != source {
		t.Fatalf("status ended with %d: %v, source %q\n%s%s", code, err, got.Source, stdout, stderr)
	}
	if told := strings.Contains(stderr, "no plugin answers on "+w.socket()+"; looking at the node itself, by the configuration "+w.config); told != (source == fromNode) {
		t.Errorf("it says: %s", stderr)
	}
	got.Source, got.Time = "", got.Time.Truncate(1<<62)
	return got
}

// The screen for people has all of it, and YAML is JSON in another style.
func TestScreens(t *testing.T) {
	w := newWard(t)
	p := w.admit(t, "files", "seen", "")
	p.publish(t, false)
	for line, says := range map[string][]string{
		"status":            {"Node " + w.name + ", as the plugin tells", "POOLS", "files  file", "DISKS", w.disk.Path, "Adopted", "VOLUMES", p.ID, "Published", "pod uid-seen", "PROBLEMS", "None is known."},
		"status --offline":  {"as the media and the kernel tell", p.ID, "Published", "Adopted", "None is known."},
		"volumes":           {"VOLUME", "USED-BY", p.ID, "pod uid-seen"},
		"volumes -o wide":   {"ACCESS-MODE", "SINGLE_NODE_WRITER", p.target},
		"disks":             {"DISK", "REASON", w.disk.Path, "Adopted"},
		"disks -o wide":     {"TRANSPORT", "SERIAL", "WWID"},
		"capacity":          {"AVAILABLE", "LARGEST", "files", "disks"},
		"doctor":            {"Nothing is left over"},
		"inspect " + p.ID:   {"volume " + p.ID, "file " + w.files, "device /dev/loop", "staged, by the record", "published at " + p.target, "kubelet's mount " + p.mapping, "kubelet's lock " + p.lock, "kubelet's link " + p.link},
		"inspect seen":      {"volume " + p.ID},
		"inspect --offline": nil,
	} {
		if says == nil {
			continue
		}
		code, stdout, stderr := w.ctl(t, strings.Fields(line)...)
		if code != exitDone || strings.Contains(stdout, "\x1b") {
			t.Errorf("%s: ended with %d and %q\n%q", line, code, stderr, stdout)
		}
		for _, words := range says {
			if !strings.Contains(stdout, words) {
				t.Errorf("%s: lacks %q:\n%s", line, words, stdout)
			}
		}
	}
	for _, line := range []string{"volumes", "disks", "capacity", "doctor", "inspect seen"} {
		_, asJSON, _ := w.ctl(t, append(strings.Fields(line), "-o", "json")...)
		_, asYAML, _ := w.ctl(t, append(strings.Fields(line), "-o", "yaml")...)
		var fromJSON, fromYAML any
		rig.Must(t, json.Unmarshal([]byte(asJSON), &fromJSON))
		rig.Must(t, yaml.Unmarshal([]byte(asYAML), &fromYAML))
		again, err := json.Marshal(fromYAML)
		rig.Must(t, err)
		fromYAML = nil
		rig.Must(t, json.Unmarshal(again, &fromYAML))
		if diff := cmp.Diff(fromJSON, fromYAML); diff != "" || strings.Contains(asYAML, `"id"`) {
			t.Errorf("%s (-json +yaml):\n%s\n%s", line, diff, asYAML)
		}
	}
	for line, want := range map[string]int{"inspect none": exitNotFound, "inspect": exitUsage, "doctor --yes": exitUsage, "doctor --fix -o json": exitUsage} {
		if code, _, stderr := w.ctl(t, strings.Fields(line)...); code != want || !isOneLine(stderr) {
			t.Errorf("%s: ended with %d and %q", line, code, stderr)
		}
	}
	p.leave(t)
}

// The way of a volume ends with the container that has it, and the process that has it
// open.
func TestInspectToTheContainer(t *testing.T) {
	w := newWard(t)
	p := w.admit(t, "disks", "traced", "")
	p.publish(t, true)
	device, err := oci.DeviceAt(p.target, "/dev/xvda")
	rig.Must(t, err)
	container := rig.NewContainer(t, oci.Config{Devices: []oci.Device{device}})
	pid, err := container.PID(rig.Context(t))
	rig.Must(t, err)
	holder := exec.CommandContext(rig.Context(t), "sleep", "1000")
	held, err := os.Open(fmt.Sprintf("/proc/%d/root/dev/xvda", pid))
	rig.Must(t, err)
	holder.Stdin = held
	rig.Must(t, holder.Start())
	held.Close()
	defer func() { holder.Process.Kill(); holder.Wait() }()
	for _, how := range []string{"", "--offline"} {
		_, stdout, stderr := w.ctl(t, append([]string{"inspect", p.ID, "-o", "json"}, strings.Fields(how)...)...)
		var chain inspect.Chain
		rig.Must(t, json.Unmarshal([]byte(stdout), &chain))
		kinds := kindsOf(chain.Links)
		want := []inspect.LinkKind{"medium", "partition", "device", "stage", "target", "view", "map", "lock", "link", "process"}
		kinds = slices.DeleteFunc(kinds, func(k inspect.LinkKind) bool { return k == "container" }) // Only where the runtime gives it an ID.
		// The disk of the test is a loop device over a file, which is a medium too, and
		// that of the file another.
		for len(kinds) > 1 && kinds[0] == kinds[1] {
			kinds = kinds[1:]
		}
		if !slices.Equal(kinds, want) {
			t.Errorf("%s: the links are %v, want %v\n%s%s", how, kinds, want, stdout, stderr)
		}
		if !strings.Contains(stdout, fmt.Sprintf(`"name": "%d"`, holder.Process.Pid)) {
			t.Errorf("%s: the process %d is missing:\n%s", how, holder.Process.Pid, stdout)
		}
	}
	holder.Process.Kill()
	holder.Wait()
	p.leave(t)
}

func kindsOf(links []inspect.Link) []inspect.LinkKind {
	var kinds []inspect.LinkKind
	for _, link := range links {
		kinds = append(append(kinds, link.Kind), kindsOf(link.Next)...)
	}
	return kinds
}

// A disk of a pool that is not configured is told, and left; wipe frees it.
func TestOrphanClaimAndWipe(t *testing.T) {
	other := rig.NewDisk(t, 64*rig.MiB)
	old, err := disk.New(t.Context(), "old", disk.Options{Match: disk.Selector{Paths: []string{other.Path}}}, sysfs)
	rig.Must(t, err)
	old.Close()
	w := newWard(t, other.Path)
	code, results := w.doctor(t, "--fix", "--yes")
	if code != exitFindings || len(results) != 1 || results[0].Check != doctor.OrphanClaim || results[0].Subject != other.Path || results[0].Result != found ||
		!strings.Contains(results[0].Remedy, "rawblockctl wipe "+other.Path) {
		t.Fatalf("doctor ended with %d and found %s", code, describe(results))
	}
	name := filepath.Base(other.Path)
	if code, _, stderr := w.ctl(t, "wipe", other.Path, "--confirm", "sdz"); code != exitUsage || !strings.Contains(stderr, "nothing was done") {
		t.Errorf("with a wrong name wipe ended with %d and %q", code, stderr)
	}
	if code, results := w.doctor(t); code != exitFindings || len(results) != 1 {
		t.Errorf("after that, doctor ended with %d and found %s", code, describe(results))
	}
	code, stdout, stderr := w.ctl(t, "wipe", other.Path, "--confirm", name)
	if code != exitDone || !strings.Contains(stdout, "wiped, all 64Mi read zero") || !strings.Contains(stderr, "100 % (64Mi of 64Mi)") {
		t.Errorf("wipe ended with %d, %q and %q", code, stdout, stderr)
	}
	content, err := os.ReadFile(other.Path)
	if err != nil || len(content) != 64*rig.MiB || bytes.ContainsFunc(content, func(r rune) bool { return r != 0 }) {
		t.Errorf("the disk has %d bytes that are not all zero (%v)", len(content), err)
	}
	w.wantHealthy(t, "once it is wiped")
}

// A disk that anybody uses is not wiped, whatever is confirmed.
func TestWipeRefuses(t *testing.T) {
	w := newWard(t)
	refused := func(why, path string, want int, says string) {
		t.Helper()
		code, stdout, stderr := w.ctl(t, "wipe", path, "--confirm", filepath.Base(path), "--with-volumes")
		if code != want || stdout != "" || !strings.Contains(stderr, says) {
			t.Errorf("%s: wipe ended with %d, %q and %q", why, code, stdout, stderr)
		}
	}
	refused("in a pool", w.disk.Path, exitInUse, "the pool disks has it")
	mounted := rig.NewDisk(t, 64*rig.MiB)
	mounted.Mount(t, "ext4")
	refused("mounted", mounted.Path, exitInUse, "mounted at")
	parts := rig.NewDisk(t, 64*rig.MiB)
	parts.AddPartition(t, 1)
	second := parts.AddPartition(t, 2)
	rig.WriteAt(t, parts.Path, "data of somebody", 40*rig.MiB)
	refused("a partition", second, exitInvalidDisk, "name the whole disk")
	held, err := os.Open(second)
	rig.Must(t, err)
	refused("a partition is open", parts.Path, exitInUse, "partition 2")
	held.Close()
	if got := rig.ReadAt(t, parts.Path, 16, 40*rig.MiB); got != "data of somebody" {
		t.Errorf("the data is %q", got)
	}
	if _, err := os.Stat(parts.PartitionPath(1)); err != nil {
		t.Errorf("the other partition: %v", err)
	}
	shown := rig.NewDisk(t, rig.MiB)
	target := filepath.Join(t.TempDir(), "target")
	rig.Must(t, os.WriteFile(target, nil, 0o600))
	rig.Must(t, unix.Mount(shown.Path, target, "", unix.MS_BIND, ""))
	refused("published", shown.Path, exitInUse, "is mounted at "+target)
	rig.Must(t, unix.Unmount(target, 0))
	refused("no disk", w.config, exitUsage, "not a block device")
	refused("nothing", "/dev/rawblock-test-none", exitNotFound, "no device")
	// A disk with volumes needs more than its name.
	w.admit(t, "disks", "kept", "")
	w.stop(t)
	if code, _, stderr := w.ctl(t, "wipe", w.disk.Path, "--confirm", filepath.Base(w.disk.Path)); code != exitRefused || !strings.Contains(stderr, "has the volumes kept of the pool disks") {
		t.Errorf("with volumes wipe ended with %d and %q", code, stderr)
	}
	w.start(t)
	if volumes := w.status(t, fromPlugin).Volumes; len(volumes) != 1 {
		t.Errorf("the volumes are %v", volumes)
	}
}

const exitInvalidDisk = exitUsage

// A volume is released only if nobody has it, by its whole ID, and by the plugin.
func TestRelease(t *testing.T) {
	w := newWard(t)
	p := w.admit(t, "disks", "freed", "")
	p.publish(t, false)
	if code, _, stderr := w.ctl(t, "release", p.ID, "--confirm", p.ID); code != exitInUse || !strings.Contains(stderr, "pod uid-freed has it") {
		t.Errorf("in use, release ended with %d and %q", code, stderr)
	}
	p.leave(t)
	for _, wrong := range []string{"freed", "disks/freed"} {
		if code, _, stderr := w.ctl(t, "release", p.ID, "--confirm", wrong); code != exitUsage || !strings.Contains(stderr, "nothing was done") {
			t.Errorf("confirmed with %s, release ended with %d and %q", wrong, code, stderr)
		}
	}
	if code, _, stderr := w.ctl(t, "release", p.ID, "-o", "json"); code != exitUsage || !strings.Contains(stderr, "--confirm "+p.ID) {
		t.Errorf("by a program that does not confirm it, release ended with %d and %q", code, stderr)
	}
	if code, _, stderr := w.ctl(t, "release", p.ID, "--offline", "--confirm", p.ID); code != exitUnreachable {
		t.Errorf("without the plugin, release ended with %d and %q", code, stderr)
	}
	if volumes := w.status(t, fromPlugin).Volumes; len(volumes) != 1 {
		t.Fatalf("the volumes are %v", volumes)
	}
	if code, stdout, stderr := w.ctl(t, "release", p.ID, "--confirm", p.ID, "--wait"); code != exitDone || stdout != p.ID+": released\n" {
		t.Errorf("release ended with %d, %q and %q", code, stdout, stderr)
	}
	if got := w.status(t, fromPlugin); len(got.Volumes) != 0 || got.Pools[1].Wiping != 0 {
		t.Errorf("after it there are %v, and %d bytes to wipe", got.Volumes, got.Pools[1].Wiping)
	}
	if code, _, stderr := w.ctl(t, "release", p.ID, "--confirm", p.ID); code != exitNotFound {
		t.Errorf("once more, release ended with %d and %q", code, stderr)
	}
}
