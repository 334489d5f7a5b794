package hotplug

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// rules are what keeps a container from devices, in all of its cgroups: the lines
// of cgroup v1, and the names and tags of the programs of v2. A tag is a hash of a
// program's instructions.
func rules(t testing.TB, container *container) []string {
	t.Helper()
	var found []string
	for _, path := range container.Cgroups() {
		dir, err := os.Open(path)
		rig.Must(t, err)
		defer dir.Close()
		if list, err := os.ReadFile(path + "/devices.list"); err == nil {
			found = append(found, path+": "+string(list))
		}
		// In a cgroup of v1, that is not even asked.
		ids, _, err := linux.DeviceProgramIDs(dir, false)
		if err != nil {
			continue
		}
		for _, id := range ids {
			program, err := linux.OpenProgram(id)
			rig.Must(t, err)
			found = append(found, fmt.Sprintf("%s: program %s %x", path, program.Name, program.Tag))
			program.Close()
		}
	}
	slices.Sort(found)
	if len(found) == 0 {
		t.Error("nothing keeps the container from devices")
	}
	return found
}

func wantRules(t testing.TB, container *container, before []string) {
	t.Helper()
	if diff := cmp.Diff(before, rules(t, container)); diff != "" {
		t.Errorf("what the container may open is another than before (-before +now):\n%s", diff)
	}
}
