package disk_test

import (
	"context"
	"errors"
	"fmt"
	"os"
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
