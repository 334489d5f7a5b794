package disk_test

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

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// scenarioVariable has the test binary play the scenario on the disk that it names.
const scenarioVariable = "RAWBLOCK_TEST_SCENARIO"

// What the scenario leaves: two volumes, of which the first has data.
const (
	keptSize  = 4 * rig.MiB
	againSize = 8 * rig.MiB
)

// The plugin is killed after each of its steps, with a disk that was free at first.
// After that it starts again, and the same calls are made again: nothing that was
// written is lost, nothing is there twice, and all other space is free and empty.
func TestKilledAfterEachStep(t *testing.T) {
	binary := t.TempDir() + "/disk.test"
	run(t, "go", "test", "-c", "-tags", "crashpoints", "-o", binary, ".")
	for at := 1; ; at++ {
		d := rig.NewDisk(t, diskSize)
		trace := t.TempDir() + "/trace"
		killed := playAndDie(t, binary, d.Path, trace, at)
		t.Run(fmt.Sprint(at, " after ", lastLine(t, trace)), func(t *testing.T) { wantScenarioCompletes(t, d) })
		d.Pull(t)
		if !killed {
			if at < 20 {
				t.Errorf("the scenario has only %d steps", at)
			}
			return
		}
	}
}

// playAndDie plays the scenario in a process that kills itself after a step.
func playAndDie(t *testing.T, binary, path, trace string, at int) (killed bool) {
	t.Helper()
	child := exec.CommandContext(t.Context(), binary)
	child.Env = append(os.Environ(), scenarioVariable+"="+path, "RAWBLOCK_CRASH_TRACE="+trace, fmt.Sprint("RAWBLOCK_CRASH_AT=", at))
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	killed = errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if err != nil && !killed {
		t.Fatalf("the scenario failed: %v\n%s", err, output)
	}
	return killed
}

func wantScenarioCompletes(t *testing.T, d *rig.Disk) {
	t.Helper()
	options := match(d)
	t.Cleanup(func() { forgetPartitions(t, d.Path) })
	// The scenario writes k to this volume only, and the last one last.
	written := rig.ReadAt(t, d.Path, 1, 2*rig.MiB+keptSize-1) == "k"
	rig.Must(t, scenario(rig.Context(t), options, func(pool *disk.Pool) error {
		if written {
			wantFilled(t, pool, "kept", "k")
		}
		return nil
	}))
	pool := newPool(t, options)
	wantFilled(t, pool, "kept", "k")
	wantFilled(t, pool, "again", "\x00")
	const left = roomSize - keptSize - againSize
	wantCapacity(t, pool, volume.Capacity{Available: left, MaxVolume: left, MinVolume: rig.MiB})
	if list, err := pool.List(rig.Context(t)); err != nil || len(list) != 2 {
		t.Errorf("volumes: %v (%v)", list, err)
	}
	wantZero(t, d, 2*rig.MiB+keptSize, diskSize-rig.MiB)
	if found := readTable(t, d); found.Primary != nil || found.Backup != nil {
		t.Errorf("primary %v, backup %v", found.Primary, found.Backup)
	}
}

// scenario makes each change that a pool can make. It can be repeated.
func scenario(ctx context.Context, options disk.Options, first func(*disk.Pool) error) error {
	ctx = klog.NewContext(ctx, klog.Logger{})
	pool, err := disk.New(ctx, "fast", options, sysfs)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := first(pool); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return untilCreated(ctx, pool, spec("kept", keptSize)) },
		func() error { return write(ctx, pool, "kept", "k", keptSize) },
		func() error { return errors.Join(pool.Delete(ctx, "again"), pool.Delete(ctx, "all")) },
		func() error { return untilCreated(ctx, pool, spec("gone", rig.MiB, "zero")) },
		func() error { _, err := pool.Expand(ctx, "gone", size(7*rig.MiB)); return err },
		func() error { return write(ctx, pool, "gone", "g", 7*rig.MiB) },
		func() error { return pool.Delete(ctx, "gone") },
		func() error { return untilCreated(ctx, pool, spec("unwiped", againSize, "none")) },
		func() error { return write(ctx, pool, "unwiped", "u", againSize) },
		func() error { return pool.Delete(ctx, "unwiped") },
		// It needs all there is, and then only some of it.
		func() error { return untilCreated(ctx, pool, spec("all", roomSize-keptSize)) },
		func() error { return pool.Delete(ctx, "all") },
		func() error { return untilCreated(ctx, pool, spec("again", againSize)) },
		func() error { return untilWiped(pool) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// untilCreated repeats a call as external-provisioner does.
func untilCreated(ctx context.Context, pool *disk.Pool, spec volume.Spec) error {
	for range 600 {
		_, err := pool.Create(ctx, spec)
		if !errors.Is(err, volume.ErrExhausted) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("create %s: %w", spec.Name, errNotYet)
}

func untilWiped(pool *disk.Pool) error {
	for range 600 {
		if disks := pool.Status().Disks; len(disks) == 1 && len(disks[0].Wiping) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errNotYet
}

// write fills a volume.
func write(ctx context.Context, pool *disk.Pool, name, char string, bytes int) error {
	device, err := pool.Activate(ctx, name)
	if err != nil {
		return err
	}
	defer device.Close()
	file, err := os.OpenFile(device.Node().Name(), os.O_WRONLY|syscall.O_SYNC, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt([]byte(strings.Repeat(char, bytes)), 0)
	return errors.Join(err, file.Close())
}

// lastLine returns the last step of a trace.
func lastLine(t *testing.T, trace string) string {
	t.Helper()
	text, err := os.ReadFile(trace)
	rig.Must(t, err)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
