package devcgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/mount-utils"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Hierarchies are where the trees of cgroups are mounted that decide on devices.
// Where both are missing, no container's device cgroup can be opened.
type Hierarchies struct {
	// Devices is that of cgroup v1's controller.
	Devices string
	// Unified is that of cgroup v2.
	Unified string
	// Owner names who grants: the plugin of a node. What others granted on the same
	// machine is left alone.
	Owner string
}

// FindHierarchies finds what the plugin of the node owner sees, which may be none.
func FindHierarchies(owner string) (Hierarchies, error) {
	table, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return Hierarchies{}, fmt.Errorf("find the cgroups: %w", err)
	}
	found := Hierarchies{Owner: owner}
	for _, m := range table {
		if m.Root != "/" {
			continue // A part of it: some container's own.
		}
		switch {
		case m.FsType == "cgroup2":
			found.Unified = m.MountPoint
		case m.FsType == "cgroup" && slices.Contains(m.SuperOptions, "devices"):
			found.Devices = m.MountPoint
		}
	}
	return found, nil
}

// paths are the cgroups of a process in each hierarchy, as they stand in
// /proc/PID/cgroup; empty where it is in none.
type paths struct{ devices, unified string }

// parsePaths reads /proc/PID/cgroup (cgroups(7)).
func parsePaths(text string) (paths, error) {
	var found paths
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 || !strings.HasPrefix(fields[2], "/") {
			return paths{}, fmt.Errorf("malformed line %q", line)
		}
		switch {
		case fields[0] == "0" && fields[1] == "":
			found.unified = fields[2]
		case slices.Contains(strings.Split(fields[1], ","), "devices"):
			found.devices = fields[2]
		}
	}
	for _, path := range []string{found.devices, found.unified} {
		if strings.HasPrefix(path+"/", "/../") {
			return paths{}, fmt.Errorf("%w: the cgroup %s is out of the plugin's sight, which has a cgroup namespace of its own; run it privileged, in the host's", volume.ErrPrecondition, path)
		}
	}
	return found, nil
}

func readPaths(pid int) (paths, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return paths{}, fmt.Errorf("%w: there is no process %d", volume.ErrNotFound, pid)
	}
	if err != nil {
		return paths{}, fmt.Errorf("find the cgroups of process %d: %w", pid, err)
	}
	found, err := parsePaths(string(text))
	if err != nil {
		return paths{}, fmt.Errorf("cgroups of process %d: %w", pid, err)
	}
	return found, nil
}

// chain returns the cgroups from that of the container, which is the topmost that
// has its ID in its name, down to the one that the path names: programs such as
// systemd make cgroups of their own below the container's. Without an ID, or where
// no name has it, that is the path alone. The root belongs to nobody.
func chain(path, containerID string) []string {
	var found []string
	for ; path != "/" && path != "." && path != ""; path = filepath.Dir(path) {
		found = append(found, path)
	}
	top := 0
	for i, one := range found {
		if containerID != "" && strings.Contains(filepath.Base(one), containerID) {
			top = i
		}
	}
	if len(found) > 0 {
		found = found[:top+1]
	}
	slices.Reverse(found)
	return found
}
