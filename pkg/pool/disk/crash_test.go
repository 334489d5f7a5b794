//go:build crash

package disk_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The plugin is killed after each of its steps, with a disk that was free at first.
// After that it starts again, and the same calls are made again: nothing that was
// written is lost, nothing is there twice, and all other space is free and empty.
func TestKilledAfterEachStep(t *testing.T) {
	binary := t.TempDir() + "/disk.test"
	run(t, "env", "CGO_ENABLED=0", "go", "test", "-c", "-trimpath", "-tags", "crashpoints", "-o", binary, ".")
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
