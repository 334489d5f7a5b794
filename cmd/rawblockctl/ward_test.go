package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	grpccodes "google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

var sysfs = blockdev.NewSysfs("/sys")

// ward is a node with the real plugin, pools of both kinds, and kubelet's directories, in
// which things are left over.
type ward struct {
	// t is the test that it goes with, of which others may be a part.
	t                                                 *testing.T
	binary, kubeletDir, stateDir, files, config, name string
	disk                                              *rig.Disk
	// flags are further ones of the plugin, and log is the file with what it says.
	flags []string
	log   string
	// size is that of the volumes of pools in bytes, 4 MiB where it is left out, and
	// parameters are further ones of their StorageClass.
	size       int64
	parameters map[string]string
	plugin     *exec.Cmd
	csi        *rig.Plugin
	// neighbours are the volumes that must not be touched.
	neighbours []*patient
}

// newWard makes a node whose plugin runs. The pool of disks also chooses what others
// lead to.
func newWard(t *testing.T, others ...string) *ward {
	t.Helper()
	w := emptyWard(t)
	w.disk = rig.NewDisk(t, 64*rig.MiB)
	w.configure(t, fmt.Sprintf(`
devices: {allow: [%s]}
pools:
- name: files
  file: {directory: %s, capacity: 256Mi}
- name: disks
  disk: {match: {paths: [%s]}}
`, strings.Join(rig.DevicePatterns(), ", "), w.files, strings.Join(append([]string{w.disk.Path}, others...), ", ")))
	return w
}

// emptyWard makes a node on which no plugin runs yet.
func emptyWard(t *testing.T) *ward {
	t.Helper()
	w := &ward{
		t: t, binary: rig.Build(t, ""), kubeletDir: rig.KubeletDir(t), stateDir: rig.StateDir(t),
		files: filepath.Join(t.TempDir(), "files"), config: filepath.Join(t.TempDir(), "config.yaml"),
		name: "rawblock-test-" + strings.ToLower(rand.Text()),
	}
	t.Cleanup(func() { detachLoopsBelow(t, w.files, w.kubeletDir) })
	rig.Must(t, os.Mkdir(filepath.Join(w.kubeletDir, "pods"), 0o755))
	return w
}

// configure starts the plugin with a configuration, and waits until its disks are wiped.
func (w *ward) configure(t *testing.T, config string) {
	t.Helper()
	rig.Must(t, os.WriteFile(w.config, []byte(config), 0o600))
	w.start(t)
	for ctx := rig.Context(t); ctx.Err() == nil && w.wiping(t) > 0; {
		time.Sleep(10 * time.Millisecond)
	}
}

// wiping is how many bytes the pools have still to wipe.
func (w *ward) wiping(t *testing.T) (left uint64) {
	t.Helper()
	node, err := admin.NewClient(w.socket()).Status(rig.Context(t))
	rig.Must(t, err)
	for _, pool := range node.Pools {
		left += pool.Wiping
	}
	return left
}

// detachLoopsBelow detaches the loop devices over what lies below the directories, which a
// test has left or planted.
func detachLoopsBelow(t *testing.T, dirs ...string) {
	t.Helper()
	loops, err := sysfs.LoopDevices()
	rig.Must(t, err)
	for _, loop := range loops {
		if slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(loop.Backing, dir+"/") }) {
			if err := sysfs.DetachLoop(loop); err != nil {
				t.Error(err)
			}
		}
	}
}

func (w *ward) start(t *testing.T) {
	t.Helper()
	w.plugin = exec.CommandContext(context.WithoutCancel(t.Context()), w.binary, append(w.flags, "--node-id="+w.name, "--config="+w.config,
		"--endpoint="+filepath.Join(w.kubeletDir, "csi.sock"), "--kubelet-dir="+w.kubeletDir, "--state-dir="+w.stateDir)...)
	log, err := os.CreateTemp(t.TempDir(), "log")
	rig.Must(t, err)
	defer log.Close()
	w.log, w.plugin.Stderr = log.Name(), log
	rig.Must(t, w.plugin.Start())
	plugin := w.plugin
	w.t.Cleanup(func() {
		plugin.Process.Kill() //nolint:errcheck // It may have ended by itself.
		plugin.Wait()         //nolint:errcheck // It says that it was killed.
		if w.t.Failed() {
			said, _ := os.ReadFile(log.Name())
			w.t.Logf("The plugin's log:\n%s", said)
		}
	})
	for ctx := rig.Context(t); ctx.Err() == nil; {
		if conn, err := net.Dial("unix", w.socket()); err == nil {
			conn.Close()
			w.csi = rig.Connect(w.t, filepath.Join(w.kubeletDir, "csi.sock"), w.kubeletDir)
			return
		}
	}
	t.Fatal("the plugin does not serve")
}

// stop ends the plugin as kill -9 does.
func (w *ward) stop(t *testing.T) {
	t.Helper()
	rig.Must(t, w.plugin.Process.Kill())
	w.plugin.Wait() //nolint:errcheck // It says that it was killed.
}

func (w *ward) socket() string { return filepath.Join(w.stateDir, "admin.sock") }

// ctl runs the program, and returns its exit code and what it printed.
func (w *ward) ctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	command := exec.CommandContext(rig.Context(t), os.Args[0], append([]string{
		"--socket", w.socket(), "--config", w.config, "--kubelet-dir", w.kubeletDir, "--node-id", w.name, "--timeout", "100s",
	}, args...)...)
	command.Env = append(os.Environ(), asProgram+"=1")
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	command.Run() //nolint:errcheck // The exit code tells.
	return command.ProcessState.ExitCode(), out.String(), errs.String()
}

// doctor runs doctor, and returns what it found and what became of that.
func (w *ward) doctor(t *testing.T, args ...string) (code int, results []result) {
	t.Helper()
	code, stdout, stderr := w.ctl(t, append([]string{"doctor", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(stdout), &results); err != nil {
		t.Fatalf("doctor %v ended with %d: %v\n%s%s", args, code, err, stdout, stderr)
	}
	return code, results
}

// wantHealthy checks that doctor has nothing to say.
func (w *ward) wantHealthy(t *testing.T, when string) {
	t.Helper()
	if code, results := w.doctor(t); code != exitDone || len(results) != 0 {
		t.Errorf("%s: doctor ended with %d and found %s", when, code, describe(results))
	}
}

func describe(results []result) string {
	var texts []string
	for _, one := range results {
		texts = append(texts, fmt.Sprintf("%s of %s: %s (%s %s)", one.Check, one.Subject, one.Message, one.Result, one.Error))
	}
	return strings.Join(texts, "\n  ")
}

// patient is a volume and what kubelet has of it for one pod.
type patient struct {
	*rig.Volume
	name, pod, target, mapping, link, note string
	lock                                   string
}

// admit makes a volume in a pool, or on a device where it is given.
func (w *ward) admit(t *testing.T, pool, name, device string) *patient {
	t.Helper()
	p := &patient{name: "pv-" + name, pod: "uid-" + name}
	if device == "" {
		parameters := map[string]string{"pool": pool}
		maps.Copy(parameters, w.parameters)
		request := &csi.CreateVolumeRequest{
			Name: name, Parameters: parameters, CapacityRange: &csi.CapacityRange{RequiredBytes: cmp.Or(w.size, 4*rig.MiB)},
			VolumeCapabilities: []*csi.VolumeCapability{w.csi.Provisioned(t, name).Capability()},
		}
		ctx := rig.Context(t)
		response, err := w.csi.CreateVolume(ctx, request)
		for grpcstatus.Code(err) == grpccodes.ResourceExhausted && ctx.Err() == nil {
			response, err = w.csi.CreateVolume(ctx, request) // The disk is still being wiped.
		}
		rig.Must(t, err)
		p.Volume = w.csi.Provisioned(t, response.GetVolume().GetVolumeId())
		p.Context = response.GetVolume().GetVolumeContext()
	} else {
		p.Volume = w.csi.NewVolume(t, name, device)
	}
	devices := filepath.Join(w.kubeletDir, "plugins/kubernetes.io/csi/volumeDevices")
	p.target = filepath.Join(devices, "publish", p.name, p.pod)
	p.mapping = filepath.Join(devices, p.name, "dev", p.pod)
	p.link = filepath.Join(w.kubeletDir, "pods", p.pod, "volumeDevices/kubernetes.io~csi", p.name)
	p.note = filepath.Join(devices, p.name, "data/vol_data.json")
	for _, dir := range []string{filepath.Dir(p.target), filepath.Dir(p.mapping), filepath.Dir(p.link), filepath.Dir(p.note)} {
		rig.Must(t, os.MkdirAll(dir, 0o755))
	}
	note, err := json.Marshal(map[string]string{"driverName": driverName, "volumeHandle": p.ID})
	rig.Must(t, err)
	rig.Must(t, os.WriteFile(p.note, note, 0o600))
	return p
}

// publish stages and publishes the volume, and does what kubelet does around that.
func (p *patient) publish(t *testing.T, readOnly bool) {
	t.Helper()
	ctx := rig.Context(t)
	rig.Must(t, p.Stage(ctx))
	if readOnly {
		rig.Must(t, p.PublishReadOnly(ctx, p.target))
	} else {
		rig.Must(t, p.Publish(ctx, p.target))
	}
	rig.Must(t, os.WriteFile(p.mapping, nil, 0o600))
	rig.Must(t, unix.Mount(p.target, p.mapping, "", unix.MS_BIND, ""))
	rig.Must(t, os.Symlink(p.target, p.link))
	output, err := exec.CommandContext(ctx, "losetup", "--show", "-f", p.mapping).Output()
	rig.Must(t, err)
	p.lock = strings.TrimSpace(string(output))
	t.Cleanup(func() { detachIfOver(t, p.lock, p.mapping) })
}

// detachIfOver detaches a loop device that still shows a path, or what was there.
func detachIfOver(t *testing.T, loop, path string) {
	t.Helper()
	loops, err := sysfs.LoopDevices()
	rig.Must(t, err)
	for _, one := range loops {
		if one.Path == loop && (one.Backing == path || one.Backing == "/") {
			rig.Must(t, sysfs.DetachLoop(one))
		}
	}
}

// age makes what is published look old enough to be a leftover.
func (p *patient) age(t *testing.T) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	for _, path := range []string{p.target, p.mapping} {
		rig.Must(t, os.Chtimes(filepath.Dir(path), old, old))
	}
}

// wantPublished checks that all that publish has made is there.
func (p *patient) wantPublished(t *testing.T, when string) {
	t.Helper()
	for _, path := range []string{p.target, p.mapping} {
		info, err := linux.StatPath(path)
		if err != nil || !info.IsBlockDevice() || !info.MountRoot {
			t.Errorf("%s: at %s of the healthy neighbour there is %+v, %v", when, path, info, err)
		}
	}
	loops, err := sysfs.LoopDevices()
	rig.Must(t, err)
	if !slices.ContainsFunc(loops, func(l blockdev.LoopDevice) bool { return l.Path == p.lock && l.Backing == p.mapping }) {
		t.Errorf("%s: the lock %s of the healthy neighbour has gone", when, p.lock)
	}
	file, err := os.Open(p.target)
	if err != nil {
		t.Errorf("%s: the device of the healthy neighbour: %v", when, err)
		return
	}
	defer file.Close()
	if _, err := file.Read(make([]byte, 512)); err != nil {
		t.Errorf("%s: the device of the healthy neighbour: %v", when, err)
	}
}

// settleNeighbours gives the node its healthy volumes: one of each pool, and one that is
// read-only.
func (w *ward) settleNeighbours(t *testing.T) {
	t.Helper()
	for _, one := range []struct {
		pool, name string
		readOnly   bool
	}{{"files", "healthy-file", false}, {"files", "healthy-read-only", true}, {"disks", "healthy-partition", false}} {
		p := w.admit(t, one.pool, one.name, "")
		p.publish(t, one.readOnly)
		w.neighbours = append(w.neighbours, p)
	}
}

func (w *ward) wantNeighbours(t *testing.T, when string) {
	t.Helper()
	for _, p := range w.neighbours {
		p.wantPublished(t, when)
	}
}

func openDisk(t *testing.T, disk *rig.Disk) *blockdev.Device {
	t.Helper()
	device, err := blockdev.Open(disk.Path, sysfs)
	rig.Must(t, err)
	return device
}

// removeNote has kubelet forget a volume.
func removeNote(p *patient) error { return os.RemoveAll(filepath.Dir(filepath.Dir(p.note))) }
