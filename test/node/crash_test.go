package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The plugin is killed after each step of each call, once per run. Afterwards
// kubelet either repeats the call and goes on, or gives the pod up: both must
// end with nothing left.
func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	rig.RequireRoot(t)
	binary := rig.Build(t, "crashpoints")
	for _, readOnly := range []bool{false, true} {
		points := countPoints(t, binary, readOnly)
		if len(points) < 6 {
			t.Fatalf("only the points %v were reached; is the hook built in?", points)
		}
		for i, point := range points {
			for name, after := range map[string]func(*life, *testing.T, int){"repeat": (*life).repeatFrom, "give up": (*life).giveUp} {
				t.Run(fmt.Sprintf("readonly=%t/%d %s/%s", readOnly, i+1, point, name), func(t *testing.T) {
					life := newLife(t, readOnly)
					plugin := rig.Start(t, binary, life.kubeletDir, life.stateDir, fmt.Sprintf("RAWBLOCK_CRASH_AT=%d", i+1))
					killedAt := life.run(t, plugin.Plugin, 0)
					if log := plugin.Kill(); killedAt == len(life.calls()) {
						t.Fatalf("the plugin was not killed: %s", log)
					}
					life.connect(t, rig.Start(t, binary, life.kubeletDir, life.stateDir).Plugin)
					after(life, t, killedAt)
					life.wantNothingLeft(t)
				})
			}
		}
	}
}

// countPoints returns the names of the points that an undisturbed life reaches.
func countPoints(t *testing.T, binary string, readOnly bool) []string {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	life := newLife(t, readOnly)
	plugin := rig.Start(t, binary, life.kubeletDir, life.stateDir, "RAWBLOCK_CRASH_TRACE="+trace)
	if ended := life.run(t, plugin.Plugin, 0); ended != len(life.calls()) {
		t.Fatalf("call %d failed", ended)
	}
	life.wantNothingLeft(t)
	content, err := os.ReadFile(trace)
	rig.Must(t, err)
	return strings.Split(strings.TrimSpace(string(content)), "\n")
}

// life is the life of one volume on a node.
type life struct {
	kubeletDir string
	stateDir   string
	disk       *rig.Disk
	volume     *rig.Volume
	target     string
	readOnly   bool
}

func newLife(t *testing.T, readOnly bool) *life {
	return &life{kubeletDir: rig.KubeletDir(t), stateDir: rig.StateDir(t), disk: rig.NewDisk(t, rig.MiB), readOnly: readOnly}
}

func (l *life) connect(t *testing.T, plugin *rig.Plugin) {
	l.volume = plugin.NewVolume(t, "vol", l.disk.Path)
	l.target = l.volume.Target(t, "pod-1")
}

func (l *life) calls() []func(context.Context) error {
	return []func(context.Context) error{
		func(ctx context.Context) error { return l.volume.Stage(ctx) },
		func(ctx context.Context) error {
			if l.readOnly {
				return l.volume.PublishReadOnly(ctx, l.target)
			}
			return l.volume.Publish(ctx, l.target)
		},
		func(ctx context.Context) error { return l.volume.Unpublish(ctx, l.target) },
		func(ctx context.Context) error { return l.volume.Unstage(ctx) },
	}
}

// run makes the calls in their order, from the first given, and returns the one
// at which the plugin died, or the number of calls.
func (l *life) run(t *testing.T, plugin *rig.Plugin, from int) int {
	t.Helper()
	l.connect(t, plugin)
	for i, call := range l.calls()[from:] {
		err := call(rig.Context(t))
		if status.Code(err) == codes.Unavailable {
			return from + i
		}
		rig.Must(t, err)
	}
	return len(l.calls())
}

func (l *life) repeatFrom(t *testing.T, call int) {
	for i, repeated := range l.calls()[call:] {
		rig.Must(t, repeated(rig.Context(t)))
		if call+i == 1 {
			wantDevicePublished(t, l.target)
		}
	}
}

func (l *life) giveUp(t *testing.T, _ int) {
	rig.Must(t, l.volume.Unpublish(rig.Context(t), l.target))
	rig.Must(t, l.volume.Unstage(rig.Context(t)))
}

func (l *life) wantNothingLeft(t *testing.T) {
	t.Helper()
	wantAbsent(t, l.target)
	wantEmpty(t, l.volume.Staging)
	wantEmpty(t, l.stateDir, "admin.sock", "lock") // Those of the plugin, which still runs.
	if views := viewsOf(t, l.disk); views != 0 {
		t.Errorf("%d read-only views are left", views)
	}
}

// csi-driver-host-path #251: all records lost after a restart. dell/csi-baremetal
// #99: stopping the plugin took devices away.
func TestStoppedAndStartedUnderAPod(t *testing.T) {
	rig.RequireRoot(t)
	binary := rig.Build(t, "")
	for _, readOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("readonly=%t", readOnly), func(t *testing.T) {
			life := newLife(t, readOnly)
			first := rig.Start(t, binary, life.kubeletDir, life.stateDir)
			life.connect(t, first.Plugin)
			rig.Must(t, life.calls()[0](rig.Context(t)))
			rig.Must(t, life.calls()[1](rig.Context(t)))
			before := lstat(t, life.target)
			rig.Must(t, first.Stop())
			if after := lstat(t, life.target); after != before {
				t.Errorf("stopping the plugin changed the target: %+v, was %+v", after, before)
			}
			if ended := life.run(t, rig.Start(t, binary, life.kubeletDir, life.stateDir).Plugin, 0); ended != len(life.calls()) {
				t.Fatalf("call %d failed", ended)
			}
			life.wantNothingLeft(t)
		})
	}
}
