package process

import (
	"errors"
	"io/fs"
	"os"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// WhoseRoot returns a process outside of the container whose root directory a directory
// is, 0 where there is none: of the host's first process, the plugin, and the parent of
// the container's first process, which has the number pid. While a container is being
// started, its first process already has the container's cgroups and a mount namespace of
// its own, but still the root of the runtime that starts it (pivot_root(2) comes last).
//
// Device and inode tell, and not the mount: the namespace of its own has copies of all
// mounts. Roots that cannot be looked at do not count, as in SharesMounts.
func (t Table) WhoseRoot(root linux.FileID, pid int) (int, error) {
	outside := []int{1, os.Getpid()}
	parent, err := t.foreignParent(pid)
	if err != nil {
		return 0, err
	}
	if parent != 0 {
		outside = append(outside, parent)
	}
	for _, other := range outside {
		info, err := linux.StatPath(t.path(other, "root"))
		if errors.Is(err, fs.ErrPermission) || other == parent && hasEnded(err) {
			continue
		}
		if err != nil {
			return 0, wrap(other, err)
		}
		if info.ID == root {
			return other, nil
		}
	}
	return 0, nil
}

// foreignParent returns the parent of a process where that has another mount namespace,
// else 0: one that has the same is in the container too.
func (t Table) foreignParent(pid int) (int, error) {
	stat, err := t.stat(pid)
	if err != nil || stat.parent == 0 {
		return 0, err
	}
	its, err := t.namespace(pid, "mnt")
	if err != nil {
		return 0, err
	}
	parents, err := t.namespace(stat.parent, "mnt")
	if errors.Is(err, volume.ErrNotFound) || errors.Is(err, fs.ErrPermission) || parents == its {
		return 0, nil
	}
	return stat.parent, err
}
