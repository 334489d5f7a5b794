package rig_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

const killedVariable = "RAWBLOCK_TEST_KILLED"

// TestToBeKilled is run by TestKilledRunLeavesNothing: it makes what tests make, says where,
// and waits for its end.
func TestToBeKilled(t *testing.T) {
	if os.Getenv(killedVariable) == "" {
		return
	}
	rig.KubeletDir(t)
	disk, directory := rig.NewDisk(t, rig.MiB), rig.StateDir(t)
	rig.Must(t, os.WriteFile(directory+"/node", nil, 0o600))
	rig.Must(t, unix.Mount(disk.Path, directory+"/node", "", unix.MS_BIND, ""))
	fmt.Println("made " + disk.Backing + " " + os.TempDir())
	select {}
}

func TestKilledRunLeavesNothing(t *testing.T) {
	rig.RequireRoot(t)
	run := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestToBeKilled$")
	run.Env = append(os.Environ(), killedVariable+"=1")
	stdout, err := run.StdoutPipe()
	rig.Must(t, err)
	rig.Must(t, run.Start())
	said, err := bufio.NewReader(stdout).ReadString('\n')
	rig.Must(t, run.Process.Kill())
	run.Wait() //nolint:errcheck,gosec // It was killed.
	rig.Must(t, err)
	made := strings.Fields(said)
	if len(made) != 3 || made[0] != "made" {
		t.Fatalf("it says %q", said)
	}
	rig.Eventually(t, func() error {
		if left, err := os.ReadDir(made[2]); err == nil {
			return fmt.Errorf("%s is left, with %v", made[2], left)
		}
		return nil
	})
	for _, point := range rig.MountPoints(t) {
		if strings.HasPrefix(point, made[2]+"/") {
			t.Errorf("%s is left mounted", point)
		}
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	rig.Must(t, err)
	for _, file := range files {
		if backing, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(backing), made[1]) {
			t.Errorf("%s is left over %s", file, backing)
		}
	}
}
