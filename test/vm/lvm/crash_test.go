package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// scenarioVariable makes this binary play the scenario and end: a volume group, and a
// thin pool or nothing, with a colon between.
const scenarioVariable = "RAWBLOCK_LVM_SCENARIO"

// playScenario plays it where it is asked for.
func playScenario() {
	where, asked := os.LookupEnv(scenarioVariable)
	if !asked {
		return
	}
	group, thinPool, _ := strings.Cut(where, ":")
	if err := scenario(context.Background(), lvm.Options{VolumeGroup: group, ThinPool: thinPool}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const scenarioSize = 4 * rig.MiB

// scenario makes a volume, writes to it, grows it, and copies it where it can; and makes
// and deletes another one. It can be played again after any of its steps.
func scenario(ctx context.Context, options lvm.Options) error {
	pool, err := lvm.New(klog.NewContext(ctx, logr.Discard()), "lvm", options, program.New(""), blockdev.NewSysfs("/sys"))
	if err != nil {
		return err
	}
	defer pool.Close()
	steps := []func() error{
		func() error { return makeAndFill(ctx, pool, "kept", 'k', volume.Range{Required: scenarioSize}) },
		func() error {
			_, err := pool.Expand(ctx, "kept", volume.Range{Required: 2 * scenarioSize, Limit: 2 * scenarioSize})
			return err
		},
		func() error { return pool.Deactivate(ctx, "kept") },
	}
	if options.ThinPool != "" {
		thin := lvm.ThinPool{Pool: pool}
		steps = append(steps, func() error { _, err := thin.CreateSnapshot(ctx, "snap", "kept"); return err }, func() error {
			spec := volume.Spec{Name: "copy", Size: volume.Range{Required: 3 * scenarioSize}, Source: volume.Source{Snapshot: "snap"}}
			_, err := pool.Create(ctx, spec)
			return err
		}, func() error { return thin.DeleteSnapshot(ctx, "snap") })
	} else {
		steps = append(steps, func() error { return makeAndFill(ctx, pool, "gone", 'g', volume.Range{Required: scenarioSize}) }, func() error {
			return errors.Join(pool.Deactivate(ctx, "gone"), pool.Delete(ctx, "gone"))
		}, func() error { return waitWiped(pool) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// makeAndFill makes a volume, and fills its first bytes; where it was filled before it
// is only looked at.
func makeAndFill(ctx context.Context, pool *lvm.Pool, name string, value byte, size volume.Range) error {
	if _, err := pool.Create(ctx, volume.Spec{Name: name, Size: size}); err != nil {
		return err
	}
	device, err := pool.Activate(ctx, name)
	if err != nil {
		return err
	}
	path := device.Node().Name()
	device.Close()
	return fill(path, value, 0, scenarioSize)
}

func waitWiped(pool *lvm.Pool) error {
	for end := time.Now().Add(time.Minute); len(pool.Status().Wiping) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("not wiped: %+v", pool.Status().Wiping)
		}
	}
	return nil
}

// crashBinary is where whoever starts the guest puts this package's tests, built with
// the tag crashpoints.
const crashBinary = "/tmp/lvm-crashpoints.test"

// The plugin is killed after each of its steps. After that it starts again, and the same
// calls are made again: nothing that was written is lost, nothing is left over.
func TestKilledAfterEachStep(t *testing.T) {
	for name, thin := range map[string]bool{"thick": false, "thin": true} {
		t.Run(name, func(t *testing.T) {
			at := 1
			for killed := true; killed; at++ {
				t.Run(fmt.Sprintf("step %d", at), func(t *testing.T) { killed = killAt(t, thin, at) })
			}
			if at < 8 {
				t.Errorf("the scenario has only %d steps", at-2)
			}
		})
	}
}

func killAt(t *testing.T, thin bool, at int) (killed bool) {
	var m *media
	if thin {
		m = newThin(t, 512, 32*rig.MiB)
	} else {
		m = newGroup(t, 512, 40*rig.MiB)
	}
	trace := t.TempDir() + "/trace"
	child := exec.CommandContext(rig.Context(t), crashBinary)
	child.Env = append(os.Environ(), scenarioVariable+"="+m.group+":"+m.thinPool, "RAWBLOCK_CRASH_TRACE="+trace, fmt.Sprint("RAWBLOCK_CRASH_AT=", at))
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	killed = errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if err != nil && !killed {
		t.Fatalf("the scenario failed: %v\n%s", err, output)
	}
	steps, err := os.ReadFile(trace)
	rig.Must(t, err)
	lines := strings.Split(strings.TrimSpace(string(steps)), "\n")
	t.Logf("killed: %t, after %q", killed, lines[len(lines)-1])

	rig.Must(t, scenario(rig.Context(t), m.options()))
	pool := m.open(t)
	want := map[string]uint64{"kept": 2 * scenarioSize}
	if thin {
		want["copy"] = 3 * scenarioSize
	}
	left := map[string]uint64{}
	list, err := pool.List(rig.Context(t))
	rig.Must(t, err)
	for _, info := range list {
		left[info.Name] = info.Size
	}
	if fmt.Sprint(left) != fmt.Sprint(want) {
		t.Errorf("there are %v, want %v", left, want)
	}
	for name, size := range want {
		path := node(t, pool, name)
		wantOnly(t, path, 'k', 0, scenarioSize)
		wantOnly(t, path, 0, scenarioSize, int64(size-scenarioSize))
	}
	lvs := len(want)
	if thin {
		lvs++ // The thin pool.
	}
	if found := strings.Fields(run(t, "lvm", "lvs", "--noheadings", "--options", "lv_name", m.group)); len(found) != lvs {
		t.Errorf("the logical volumes are %v, more than %v", found, want)
	}
	return killed
}
