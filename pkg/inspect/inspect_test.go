package inspect_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/health"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// volumes is a fake pool, for answers that do not come.
type volumes struct {
	infos []volume.Info
	hangs chan struct{}
}

func (v volumes) List(context.Context) ([]volume.Info, error) {
	if v.hangs != nil {
		<-v.hangs
	}
	return v.infos, nil
}

func (v volumes) Capacity(context.Context, map[string]string) (volume.Capacity, error) {
	return volume.Capacity{Available: 7, MaxVolume: 5, MinVolume: 1}, nil
}

// runtime is a fake container runtime.
type runtime struct{ err error }

func (r runtime) Pods(context.Context) ([]cri.Pod, error) {
	return []cri.Pod{{Namespace: "default", Name: "db-0", UID: "uid-1"}}, r.err
}

func (r runtime) Containers(context.Context) ([]cri.Container, error) { return nil, r.err }

func newOptions(t *testing.T) inspect.Options {
	t.Helper()
	options := inspect.Options{
		Node: "node", Driver: "driver", StateDir: rig.StateDir(t), KubeletDir: rig.KubeletDir(t), Sysfs: blockdev.NewSysfs("/sys"),
		Runtime: runtime{}, Patience: 100 * time.Millisecond,
	}
	rig.Must(t, os.Mkdir(filepath.Join(options.KubeletDir, "pods"), 0o755))
	return options
}

// A pool that does not answer keeps nobody waiting, and hides no other.
func TestAPoolThatHangs(t *testing.T) {
	options := newOptions(t)
	hangs := make(chan struct{})
	defer close(hangs)
	options.Pools = []inspect.Source{
		{Name: "hung", Kind: "disk", Volumes: volumes{hangs: hangs}},
		{Name: "well", Kind: "file", Volumes: volumes{infos: []volume.Info{{Name: "b", Size: 2}, {Name: "a", Size: 1}}}},
		{Name: "closed", Kind: "lvm", Err: errors.New("only the plugin reads it")},
	}
	node, err := inspect.New(options).Status(t.Context())
	rig.Must(t, err)
	if got := node.Pools[0].Error; !strings.Contains(got, "has not answered since") {
		t.Errorf("the pool that hangs says %q", got)
	}
	if got := node.Pools[1]; got.Error != "" || got.Volumes != 2 || got.Promised != 3 || got.Available != 7 || got.MaxVolume != 5 {
		t.Errorf("the other pool is %+v", got)
	}
	if len(node.Volumes) != 2 || node.Volumes[0].ID != "well/a@node" || node.Volumes[0].State != inspect.Unused {
		t.Errorf("the volumes are %+v", node.Volumes)
	}
	if len(node.Errors) != 2 || !strings.Contains(node.Errors[1], "only the plugin reads it") {
		t.Errorf("the errors are %q", node.Errors)
	}
	text, err := json.Marshal(node)
	if err != nil || strings.Contains(string(text), "null") {
		t.Errorf("as JSON it is %s, %v", text, err)
	}
}

// A volume of an administrator's device is shown with its pods, and found by a part of
// its name.
func TestNamedVolume(t *testing.T) {
	options, disk := newOptions(t), rig.NewDisk(t, rig.MiB)
	publisher, err := publish.New(options.StateDir, options.Sysfs)
	rig.Must(t, err)
	device, err := blockdev.Open(disk.Path, options.Sysfs)
	rig.Must(t, err)
	defer device.Close()
	for _, id := range []string{"my-disk-1", "my-disk-2"} {
		rig.Must(t, publisher.Stage(id, device, volume.MultiNodeMultiWriter))
	}
	target := filepath.Join(options.KubeletDir, "uid-1")
	wanted := publish.Publication{Target: target, Mode: volume.MultiNodeMultiWriter}
	rig.Must(t, publisher.Admit(t.Context(), "my-disk-1", device, wanted))
	rig.Must(t, publisher.Publish(t.Context(), device, publish.Target{VolumeID: "my-disk-1", Path: target}, false))
	defer func() {
		rig.Must(t, publisher.Unpublish(context.Background(), publish.Target{VolumeID: "my-disk-1", Path: target}))
	}()
	inspector := inspect.New(options)
	node, err := inspector.Status(t.Context())
	rig.Must(t, err)
	if len(node.Volumes) != 2 || node.Volumes[0].State != inspect.Published || node.Volumes[0].Users[0].String() != "default/db-0" || node.Volumes[1].State != inspect.Staged {
		t.Errorf("the volumes are %+v", node.Volumes)
	}
	for id, want := range map[string]error{"disk": volume.ErrInvalid, "none": volume.ErrNotFound, "": volume.ErrNotFound, "disk-1": nil, "my-disk-2": nil} {
		chain, err := inspector.Chain(t.Context(), id)
		if !errors.Is(err, want) || err == nil && !strings.Contains(chain.Volume.ID, id) {
			t.Errorf("%q: %+v, %v; want %v", id, chain.Volume, err, want)
		}
	}
	options.Runtime = runtime{err: errors.New("the runtime is away")}
	node, err = inspect.New(options).Status(t.Context())
	if err != nil || len(node.Volumes) != 2 || node.Volumes[0].Users[0].String() != "pod uid-1" || !strings.Contains(strings.Join(node.Errors, ""), "the runtime is away") {
		t.Errorf("without the runtime: %+v, %v", node, err)
	}
}

// damaged is a fake pool with a volume of which only that something is wrong is known.
type damaged struct{ volumes }

func (damaged) Health(context.Context) ([]volume.Condition, []linux.DeviceNumber, error) {
	return []volume.Condition{{Severity: volume.Degraded, Reason: volume.PoolFilling, Message: "pool p: little is free"}}, nil, nil
}

func (damaged) VolumeHealth(_ context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error) {
	return []volume.Condition{{Severity: volume.Inaccessible, Reason: volume.RecordDamaged, Message: name}}, nil, nil
}

func (damaged) Missing() []string { return []string{"gone"} }

// What the plugin's monitor has seen is told, and what pools say of damaged volumes.
func TestConditions(t *testing.T) {
	options, disk := newOptions(t), rig.NewDisk(t, 2*rig.MiB)
	publisher, err := publish.New(options.StateDir, options.Sysfs)
	rig.Must(t, err)
	device, err := blockdev.Open(disk.Path, options.Sysfs)
	rig.Must(t, err)
	defer device.Close()
	rig.Must(t, publisher.Stage("disk", device, volume.SingleNodeSingleWriter))
	options.Pools = []inspect.Source{{Name: "p", Kind: "file", Volumes: damaged{}}}
	options.Monitor = health.New(options.Sysfs)
	told := func(options inspect.Options) (lines []string) {
		node, err := inspect.New(options).Status(t.Context())
		rig.Must(t, err)
		for _, condition := range node.Conditions {
			lines = append(lines, fmt.Sprintf("%s %s %s", condition.Of, condition.Severity, condition.Reason))
		}
		return lines
	}
	want := []string{"pool p Degraded PoolFilling", "p/gone@node Inaccessible RecordDamaged"}
	if got := told(options); !slices.Equal(got, want) {
		t.Errorf("told is %q, want %q", got, want)
	}
	disk.Resize(t, rig.MiB)
	if got := told(options); !slices.Equal(got, append([]string{want[0], "disk DataLoss SizeShrank"}, want[1])) {
		t.Errorf("of a disk that has shrunk is told: %q", got)
	}
	options.Monitor.NoteOpening("another", volume.ErrMismatch)
	if got := told(options); !slices.Contains(got, "another Inaccessible DeviceReplaced") {
		t.Errorf("of a volume that could not be opened nothing is told: %q", got)
	}
	options.Monitor = nil
	if got := told(options); !slices.Equal(got, want) {
		t.Errorf("who has not seen it before tells: %q, want %q", got, want)
	}
}
