package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// openHostRoot opens the root directory of the host's first process, or the doctor's own
// where that is refused: on the host that is the same, and in a container the manifests
// give the right to.
func openHostRoot() (*linux.File, error) {
	root, err := linux.OpenDir("/proc/1/root")
	if errors.Is(err, fs.ErrPermission) {
		return linux.OpenDir("/")
	}
	return root, err
}

// nodesOnHost looks on the host for nodes of attachments that belong into containers:
// earlier versions made them there where the container was just being started.
func (e *examination) nodesOnHost() {
	for _, one := range e.survey.Attachments {
		if one.Err != nil || !one.Current || one.Number == "" {
			continue
		}
		node, err := openHostNode(one)
		if err != nil {
			e.survey.Errors = append(e.survey.Errors, fmt.Sprintf("attachment %s: %v", one.ID, err))
		}
		if node == nil {
			continue
		}
		node.Close()
		e.add(Finding{
			Check: NodeOnHost, Subject: one.Path,
			Message: fmt.Sprintf("%s on the host is a node of device %s, which attachment %s has at that path in its container", one.Path, one.Number, one.ID),
			Meaning: "an earlier version made it there while the container was being started; whoever may open it on the host has the device",
			Remedy:  "rawblockctl doctor --fix",
			Fix:     "remove the node on the host; that of the container stays",
			mend:    func(context.Context) error { return removeHostNode(one) },
		})
	}
}

// openHostNode opens the directory of the host in which the node of an attachment is by
// mistake, nil where there is none. Nodes in a filesystem of the host's /dev are the host's.
func openHostNode(one hotplug.Recorded) (*linux.File, error) {
	number, err := linux.ParseDeviceNumber(one.Number)
	if err != nil {
		return nil, err
	}
	root, err := openHostRoot()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := linux.OpenDirBelow(root, path.Dir(one.Path))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil, nil //nolint:nilnil // That there is none is an answer.
	}
	if err != nil {
		return nil, err
	}
	ours, err := isStrayNode(root, dir, path.Base(one.Path), number)
	if err != nil || !ours {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

func isStrayNode(root, dir *linux.File, name string, number linux.DeviceNumber) (bool, error) {
	info, err := linux.StatAt(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !info.IsBlockDevice() || info.Device != number || info.MountRoot {
		return false, err
	}
	dev, err := linux.StatAt(root, "dev")
	return info.ID.Device != dev.ID.Device, err
}

func removeHostNode(one hotplug.Recorded) error {
	dir, err := openHostNode(one)
	if err != nil {
		return err
	}
	if dir == nil {
		return fmt.Errorf("%w: the node at %s on the host has gone", volume.ErrNotFound, one.Path)
	}
	defer dir.Close()
	return linux.RemoveFile(dir, path.Base(one.Path))
}
