package lvm

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// missing stands for a host that has no lvm.
type missing struct{}

func (missing) Run(context.Context, program.Command) ([]byte, error) {
	return nil, program.ErrNotInstalled
}

func TestHostHasNoLVM(t *testing.T) {
	pool, err := NewThin(t.Context(), "pool", Options{VolumeGroup: "vg0", ThinPool: "tp0"}, missing{}, blockdev.NewSysfs("/sys"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx := t.Context()
	_, err = pool.Create(ctx, volume.Spec{Name: "a"})
	if !errors.Is(err, volume.ErrExhausted) || !strings.Contains(err.Error(), "install lvm2 on this node") {
		t.Errorf("create: %v", err)
	}
	_, activateErr := pool.Activate(ctx, "a")
	_, snapshotErr := pool.CreateSnapshot(ctx, "s", "a")
	for call, err := range map[string]error{"delete": pool.Delete(ctx, "a"), "activate": activateErr, "snapshot": snapshotErr} {
		if !errors.Is(err, volume.ErrPrecondition) {
			t.Errorf("%s: %v", call, err)
		}
	}
	if capacity, err := pool.Capacity(ctx, nil); err != nil || capacity != (volume.Capacity{}) {
		t.Errorf("capacity is %+v, %v", capacity, err)
	}
	if conditions, _, err := pool.Health(ctx); err != nil || len(conditions) != 1 || conditions[0].Reason != volume.DiskRefused {
		t.Errorf("health is %+v, %v", conditions, err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, options := range []Options{{}, {VolumeGroup: "-vg"}, {VolumeGroup: "vg0/tp0"}, {VolumeGroup: "vg0", Wipe: "none"}, {VolumeGroup: "vg0", Wipe: "shred"}} {
		if _, err := New(t.Context(), "pool", options, missing{}, blockdev.NewSysfs("/sys")); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%+v: %v", options, err)
		}
	}
	if _, err := NewThin(t.Context(), "pool", Options{VolumeGroup: "vg0", ThinPool: "--help"}, missing{}, blockdev.NewSysfs("/sys")); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("an option as thin pool: %v", err)
	}
}

func TestParameters(t *testing.T) {
	thick, thin := &Pool{wipe: wipeZero}, &Pool{wipe: wipeDiscard, options: Options{ThinPool: "tp0"}}
	for text, want := range map[string]wipe{"discard": wipeDiscard, "zero": wipeZero, "secure": wipeSecure, "none": wipeNone} {
		if got, err := thick.parameters(map[string]string{"wipe": text}); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	if got, err := thick.parameters(nil); err != nil || got != wipeZero {
		t.Errorf("by default: %v, %v", got, err)
	}
	if got, err := thin.parameters(nil); err != nil || got != 0 {
		t.Errorf("thin: %v, %v", got, err)
	}
	for pool, values := range map[*Pool]map[string]string{thick: {"wipe": "shred"}, thin: {"wipe": "zero"}} {
		if _, err := pool.parameters(values); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%v: %v", values, err)
		}
	}
}
