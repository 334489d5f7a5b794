package containerd_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/containerd"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// Nothing stays, also of a daemon that was killed and could not clear up.
func TestDelete(t *testing.T) {
	for name, kill := range map[string]bool{"running": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			rig.RequireContainers(t)
			rig.RequireProgram(t, "containerd")
			ctx := rig.Context(t)
			_, err := os.Stat("/run/containerd")
			wasThere := err == nil
			started, err := containerd.Start(ctx, containerd.Config{Dir: t.TempDir(), Prefix: "rawblock-test"})
			rig.Must(t, err)
			deleted := false
			t.Cleanup(func() {
				if !deleted {
					rig.Must(t, started.Delete(ctx))
				}
			})
			sandbox, err := started.Run(ctx, containerd.Pod{Namespace: "default", Name: "a", UID: "rawblock-test-uid"})
			rig.Must(t, err)
			container, err := sandbox.Start(ctx, "main")
			rig.Must(t, err)
			if said, err := container.Exec(ctx, "sh", "-c", "echo here; sleep infinity >/dev/null 2>&1 &"); err != nil || said != "here" {
				t.Errorf("the container says %q, %v", said, err)
			}
			if len(with(t, container.ID)) == 0 || len(with(t, started.Socket)) == 0 {
				t.Error("the container and its shim are not found")
			}
			if kill {
				rig.Must(t, started.Kill())
			}
			deleted = true
			rig.Must(t, started.Delete(ctx))
			for _, mark := range []string{container.ID, sandbox.ID, started.Socket} {
				if left := with(t, mark); len(left) > 0 {
					t.Errorf("of %s there is left: %s", mark, strings.Join(left, ", "))
				}
			}
			if _, err := os.Stat("/run/containerd"); !wasThere && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("/run/containerd was not there before: %v", err)
			}
		})
	}
}

// with lists the processes, mounts and cgroups that have something in their
// arguments, cgroups or names.
func with(t *testing.T, mark string) []string {
	t.Helper()
	var found []string
	processes, err := filepath.Glob("/proc/[0-9]*")
	rig.Must(t, err)
	for _, process := range processes {
		// One that has ended, but is not waited for, has no arguments.
		arguments, err := os.ReadFile(process + "/cmdline")
		if err != nil || len(arguments) == 0 {
			continue
		}
		cgroups, _ := os.ReadFile(process + "/cgroup")
		if strings.Contains(string(arguments)+string(cgroups), mark) {
			found = append(found, process)
		}
	}
	for _, point := range rig.MountPoints(t) {
		if strings.Contains(point, mark) {
			found = append(found, point)
		}
	}
	cgroups, err := filepath.Glob("/sys/fs/cgroup/*/*/*/*" + mark + "*")
	rig.Must(t, err)
	return append(found, cgroups...)
}
