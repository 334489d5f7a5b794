//go:build crash

package pools

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// kind is a kind of pool, on a medium of its own.
type kind struct {
	// config is the pool in the node's configuration.
	config string
	// snapshots says that the pool makes them.
	snapshots bool
	// wantEmpty fails the test unless nothing is left on the medium.
	wantEmpty func(t *testing.T)
}

var kinds = map[string]func(t *testing.T) kind{
	"files with reflink":    func(t *testing.T) kind { return fileKind(t, rig.Filesystem(t, "xfs", 320*rig.MiB)) },
	"files without reflink": func(t *testing.T) kind { return fileKind(t, rig.Filesystem(t, "ext4", 128*rig.MiB)) },
	"partitions of a disk":  diskKind,
}

// diskKind is a pool of one disk, which it has adopted and wiped: a plugin that
// dies before it serves is the business of the pool's own tests.
func diskKind(t *testing.T) kind {
	medium := rig.NewDisk(t, 48*rig.MiB)
	adopt(t, medium.Path)
	return kind{
		config: fmt.Sprintf("[{name: pool, disk: {match: {paths: [%s]}}}]", medium.Path),
		wantEmpty: func(t *testing.T) {
			t.Helper()
			// All is wiped, and read again past every cache.
			clean := func() bool {
				return strings.Count(rig.ReadAt(t, medium.Backing, 44*rig.MiB, 2*rig.MiB), "\x00") == 44*rig.MiB
			}
			eventually(t, clean, func() string { return "something is left on the disk" })
		},
	}
}

func fileKind(t *testing.T, dir string) kind {
	dir, err := os.MkdirTemp(dir, "pool")
	rig.Must(t, err)
	return kind{
		config:    fmt.Sprintf("[{name: pool, file: {directory: %s}}]", dir),
		snapshots: true,
		wantEmpty: func(t *testing.T) {
			t.Helper()
			left := func() (found []string) {
				for _, place := range []string{"volumes", "snapshots", "work"} {
					names, err := filepath.Glob(filepath.Join(dir, place, "*"))
					rig.Must(t, err)
					found = append(found, names...)
				}
				return found
			}
			eventually(t, func() bool { return len(left()) == 0 }, func() string { return fmt.Sprintf("left: %v", left()) })
		},
	}
}

// The plugin is killed after each step of each call, once per run. Afterwards the
// callers either repeat the call and go on, or give everything up: both must end
// with nothing left, and with the data as it was as long as it was there.
//
// csi-driver-host-path #251: all records lost after a restart.
func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	rig.RequireRoot(t)
	binary := rig.Build(t, "crashpoints")
	for name, setUp := range kinds {
		t.Run(name, func(t *testing.T) {
			points := countPoints(t, binary, setUp(t))
			if len(points) < 15 {
				t.Fatalf("only the points %v were reached; is the hook built in?", points)
			}
			for i, point := range points {
				for ending, after := range map[string]func(*life, int){"repeat": (*life).runFrom, "give up": (*life).giveUp} {
					t.Run(fmt.Sprintf("%d %s/%s", i+1, point, ending), func(t *testing.T) {
						l := newLife(t, binary, setUp(t))
						plugin := l.start(fmt.Sprintf("RAWBLOCK_CRASH_AT=%d", i+1))
						killedAt := l.run(0)
						plugin.Kill()
						l.start()
						after(l, killedAt)
						l.wantNothingLeft()
					})
				}
			}
		})
	}
}

// countPoints returns the names of the points that an undisturbed life reaches.
func countPoints(t *testing.T, binary string, kind kind) []string {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	l := newLife(t, binary, kind)
	plugin := l.start("RAWBLOCK_CRASH_TRACE=" + trace)
	l.runFrom(0)
	l.wantNothingLeft()
	plugin.Kill()
	content, err := os.ReadFile(trace)
	rig.Must(t, err)
	return strings.Split(strings.TrimSpace(string(content)), "\n")
}

// life is the life of a volume, and of one that is restored from its snapshot.
type life struct {
	*testing.T
	kind
	binary               string
	kubeletDir, stateDir string
	plugin               *rig.Plugin
	// id, restored and snapshot are IDs, as far as they are known.
	id, restored, snapshot string
	volume                 *rig.Volume
	target                 string
}

func newLife(t *testing.T, binary string, kind kind) *life {
	return &life{T: t, kind: kind, binary: binary, kubeletDir: rig.KubeletDir(t), stateDir: rig.StateDir(t)}
}

func (l *life) start(environment ...string) *rig.Process {
	l.Helper()
	plugin := rig.StartWithPools(l, l.config, l.binary, l.kubeletDir, l.stateDir, environment...)
	l.plugin = plugin.Plugin
	if l.id != "" {
		l.locate()
	}
	return plugin
}

func (l *life) locate() {
	l.volume = l.plugin.Provisioned(l, l.id)
	l.target = l.volume.Target(l, "pod-1")
}

// calls are the life, each call as its caller repeats it.
func (l *life) calls() []func(context.Context) error {
	calls := []func(context.Context) error{
		l.create,
		func(ctx context.Context) error { return l.volume.Stage(ctx) },
		func(ctx context.Context) error { return l.volume.Publish(ctx, l.target) },
		l.write,
		l.expand,
	}
	if l.snapshots {
		calls = append(calls, l.takeSnapshot)
	}
	calls = append(calls,
		func(ctx context.Context) error { return l.volume.Unpublish(ctx, l.target) },
		func(ctx context.Context) error { return l.volume.Unstage(ctx) })
	if l.snapshots {
		calls = append(calls, l.takeSnapshot, l.restore, l.deleteSnapshot, l.deleteRestored)
	}
	return append(calls, l.delete)
}

func (l *life) create(ctx context.Context) error {
	response, err := l.plugin.CreateVolume(ctx, createRequest(name, size))
	for status.Code(err) == codes.ResourceExhausted { // What the disk had is still being wiped.
		time.Sleep(10 * time.Millisecond)
		response, err = l.plugin.CreateVolume(ctx, createRequest(name, size))
	}
	if err == nil {
		l.id = response.GetVolume().GetVolumeId()
		l.locate()
	}
	return err
}

func (l *life) write(context.Context) error {
	rig.WriteAt(l, l.target, data, 4096)
	return nil
}

func (l *life) wantData(path string) {
	l.Helper()
	if got := rig.ReadAt(l, path, len(data), 4096); got != data {
		l.Errorf("%s has %q, want %q", path, got, data)
	}
}

func (l *life) expand(ctx context.Context) error {
	response, err := l.plugin.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: l.id, VolumePath: l.target, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * size},
	})
	if err == nil && response.GetCapacityBytes() != 2*size {
		l.Errorf("grown to %d bytes", response.GetCapacityBytes())
	}
	if err == nil {
		l.wantData(l.target)
	}
	return err
}

func (l *life) takeSnapshot(ctx context.Context) error {
	response, err := l.plugin.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snapshot-1", SourceVolumeId: l.id})
	if status.Code(err) == codes.FailedPrecondition {
		return nil // A filesystem without reflink, and a volume in use: it is taken later.
	}
	l.snapshot = response.GetSnapshot().GetSnapshotId()
	return err
}

func (l *life) restore(ctx context.Context) error {
	request := createRequest("restored", 3*size)
	request.VolumeContentSource = fromSnapshot(l.snapshot)
	response, err := l.plugin.CreateVolume(ctx, request)
	if err != nil {
		return err
	}
	l.restored = response.GetVolume().GetVolumeId()
	volume := l.plugin.Provisioned(l, l.restored)
	target := volume.Target(l, "pod-2")
	for _, call := range []func() error{
		func() error { return volume.Stage(ctx) },
		func() error { return volume.PublishReadOnly(ctx, target) },
		func() error { l.wantData(target); return nil },
		func() error { return volume.Unpublish(ctx, target) },
		func() error { return volume.Unstage(ctx) },
	} {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

func (l *life) deleteSnapshot(ctx context.Context) error {
	_, err := l.plugin.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: l.snapshot})
	return err
}

func (l *life) deleteRestored(ctx context.Context) error {
	_, err := l.plugin.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: l.restored})
	return err
}

func (l *life) delete(ctx context.Context) error {
	_, err := l.plugin.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: l.id})
	return err
}

// run makes the calls in their order, from the first given, and returns the one
// at which the plugin died, or the number of calls.
func (l *life) run(from int) int {
	l.Helper()
	calls := l.calls()
	for i, call := range calls[from:] {
		err := call(rig.Context(l))
		if status.Code(err) == codes.Unavailable {
			return from + i
		}
		if err != nil {
			l.Fatalf("call %d: %v", from+i, err)
		}
	}
	return len(calls)
}

func (l *life) runFrom(call int) {
	l.Helper()
	if ended := l.run(call); ended != len(l.calls()) {
		l.Fatalf("call %d failed", ended)
	}
}

// giveUp is what Kubernetes does where the pod, the claim and the snapshot are
// deleted. A provisioner that never got an answer asks once more, to learn the ID.
func (l *life) giveUp(int) {
	ctx := rig.Context(l)
	if l.id == "" {
		rig.Must(l, l.create(ctx))
	}
	rig.Must(l, l.volume.Unpublish(ctx, l.target))
	rig.Must(l, l.volume.Unstage(ctx))
	if l.snapshots {
		l.restored, l.snapshot = "pool/restored@"+rig.NodeID, "pool/snapshot-1@"+rig.NodeID
		restored := l.plugin.Provisioned(l, l.restored)
		rig.Must(l, restored.Unpublish(ctx, restored.Target(l, "pod-2")))
		rig.Must(l, restored.Unstage(ctx))
		rig.Must(l, l.deleteRestored(ctx))
		rig.Must(l, l.deleteSnapshot(ctx))
	}
	rig.Must(l, l.delete(ctx))
}

func (l *life) wantNothingLeft() {
	l.Helper()
	l.wantEmpty(l.T)
	response, err := l.plugin.ListVolumes(rig.Context(l), &csi.ListVolumesRequest{})
	if err != nil || len(response.GetEntries()) != 0 {
		l.Errorf("volumes are left: %v, %v", response, err)
	}
	records, err := os.ReadDir(l.stateDir)
	// The plugin, which still runs, has its admin socket and its lock there.
	records = slices.DeleteFunc(records, func(entry os.DirEntry) bool { return entry.Name() == "admin.sock" || entry.Name() == "lock" })
	if err != nil || len(records) != 0 {
		l.Errorf("records are left: %v, %v", records, err)
	}
	if points := slices.DeleteFunc(rig.MountPoints(l), func(point string) bool {
		return !strings.HasPrefix(point, l.kubeletDir+"/")
	}); len(points) > 0 {
		l.Errorf("mounts are left: %v", points)
	}
}
