package hotplug

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// nodeMode is the mode of a node in a container. It belongs to the user that the
// container runs as, who is often not root.
const nodeMode = 0o660

// place is where a node is made in a container: the directory, held by a handle, and
// the name in it. All that lies in a container may be the work of its owner, so
// no link is followed on the way there, and nothing is believed of what is found.
type place struct {
	container *container
	path      string
	dir       *linux.File
	name      string
	// root is the root of the container that it is in.
	root linux.FileInfo
}

// openPlace opens the directory of a path in a container. Errors:
// volume.ErrPrecondition where there is none, or a link is on the way; errStarting.
func openPlace(container *container, p string) (place, error) {
	root, rootInfo, err := container.openRoot()
	if err != nil {
		return place{}, err
	}
	defer root.Close()
	parent, name := path.Split(p)
	dir, err := linux.OpenDirBelow(root, parent)
	switch {
	case errors.Is(err, syscall.ELOOP):
		return place{}, fmt.Errorf("%w: there is a symbolic link on the way to %s in the container; links are not followed there, name the directory itself", volume.ErrPrecondition, p)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return place{}, fmt.Errorf("%w: the container has no directory %s; make it there, or choose another path", volume.ErrPrecondition, path.Clean(parent))
	case err != nil:
		return place{}, fmt.Errorf("open the directory of %s in the container: %w", p, err)
	}
	return place{container: container, path: p, dir: dir, name: name, root: rootInfo}, nil
}

func (p place) close() { p.dir.Close() }

// checkVacant returns an error where no node can be made, or something is there. Errors:
// volume.ErrPrecondition.
func (p place) checkVacant() error {
	if err := p.check(); err != nil {
		return err
	}
	info, err := linux.StatAt(p.dir, p.name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && p.isMountFile(info) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s in the container: %w", p.path, err)
	}
	return fmt.Errorf("%w: there is %s at %s in the container already; choose another path, or remove it there", volume.ErrPrecondition, linux.TypeName(info.Type), p.path)
}

// what is found at a place.
type found int

const (
	// nothing is there.
	nothing found = iota
	// theNode is a node of the device.
	theNode
	// another is something else.
	another
)

// look tells what is at the place, and names a node of the device.
func (p place) look(number linux.DeviceNumber) (found, linux.FileInfo, error) {
	info, err := linux.StatAt(p.dir, p.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nothing, info, nil
	case err != nil:
		return another, info, fmt.Errorf("look at %s in the container: %w", p.path, err)
	case info.IsBlockDevice() && info.Device == number:
		return theNode, info, nil
	default:
		return another, info, nil
	}
}

// check returns an error where no node can be made. Errors:
// volume.ErrPrecondition.
func (p place) check() error {
	host, err := linux.OpenPath("/dev")
	if err != nil {
		return fmt.Errorf("open the host's /dev: %w", err)
	}
	defer host.Close()
	hostInfo, err := linux.Stat(host)
	if err != nil {
		return err
	}
	info, err := linux.Stat(p.dir)
	if err != nil {
		return err
	}
	flags, err := linux.FlagsOf(p.dir)
	if err != nil {
		return err
	}
	switch {
	case info.ID.Device == hostInfo.ID.Device:
		return fmt.Errorf("%w: the directory of %s in the container is the host's own /dev, where every device of the host is already; a node made there would be made on the host", volume.ErrPrecondition, p.path)
	case flags.ReadOnly:
		return fmt.Errorf("%w: the directory of %s is read-only in the container; that is what its owner chose, so choose another path (an emptyDir volume will do), or let the container have a writable /dev", volume.ErrPrecondition, p.path)
	case flags.NoDevices && !p.container.foreign:
		return fmt.Errorf("%w: the directory of %s is on a filesystem mounted with nodev in the container, where no device can be opened; choose another path, such as one in /dev", volume.ErrPrecondition, p.path)
	}
	return nil
}

// make makes the node, and returns its identity. One that is there already is
// left as it is. Errors: volume.ErrPrecondition where something else is there;
// volume.ErrAborted where the container has changed its root meanwhile.
func (p place) make(number linux.DeviceNumber) (linux.FileID, error) {
	node, err := p.makeHere(number)
	if err != nil {
		return node, err
	}
	if err := p.checkRoot(); err != nil {
		return linux.FileID{}, errors.Join(err, p.remove(number))
	}
	return node, nil
}

func (p place) makeHere(number linux.DeviceNumber) (linux.FileID, error) {
	if err := p.check(); err != nil {
		return linux.FileID{}, err
	}
	state, info, err := p.look(number)
	switch {
	case err != nil:
		return linux.FileID{}, err
	case state == theNode:
		return info.ID, nil
	case state == another && !p.isMountFile(info):
		return linux.FileID{}, fmt.Errorf("%w: there is %s at %s in the container; choose another path, or remove it there", volume.ErrPrecondition, linux.TypeName(info.Type), p.path)
	}
	if p.container.foreign {
		err = p.mountNode(number)
	} else {
		err = p.makeNode(number)
	}
	if err != nil {
		return linux.FileID{}, err
	}
	state, info, err = p.look(number)
	if err != nil {
		return linux.FileID{}, err
	}
	if state != theNode {
		return linux.FileID{}, fmt.Errorf("%w: %s in the container is not the node that was just made there; something in the container works on it", volume.ErrAborted, p.path)
	}
	return info.ID, nil
}

// makeNode makes the node in the container's own filesystem.
func (p place) makeNode(number linux.DeviceNumber) error {
	err := linux.MakeBlockNode(p.dir, p.name, number)
	// ENOENT: a filesystem of the kernel's, such as /proc; or the directory was removed.
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("%w: no node can be made at %s in the container, choose another path: %w", volume.ErrPrecondition, p.path, err)
	}
	if err != nil {
		return fmt.Errorf("make the node in the container: %w", err)
	}
	crashpoint.Here("node made")
	node, err := linux.OpenPathAt(p.dir, p.name)
	if err != nil {
		return fmt.Errorf("open the node in the container: %w", err)
	}
	defer node.Close()
	parent, err := linux.Stat(p.dir)
	if err != nil {
		return err
	}
	info, err := linux.Stat(node)
	if err != nil {
		return err
	}
	// What the container puts in its place must not be given away: neither another
	// kind of file, nor a node of the host that is mounted here.
	if !info.IsBlockDevice() || info.Device != number || info.MountRoot || info.ID.Device != parent.ID.Device {
		return fmt.Errorf("%w: %s in the container is not the node that was just made there; something in the container works on it", volume.ErrAborted, p.path)
	}
	if err := linux.SetOwner(node, p.container.uid, p.container.gid, nodeMode); err != nil {
		return fmt.Errorf("give the node to the container's user: %w", err)
	}
	crashpoint.Here("node given to its owner")
	return nil
}

// mountNode mounts a node of this user namespace: in a filesystem of another one
// no device can be opened.
func (p place) mountNode(number linux.DeviceNumber) error {
	tree, err := linux.BlockNodeTree(number, p.container.uid, p.container.gid, nodeMode)
	if err != nil {
		return fmt.Errorf("make a node for the container: %w", err)
	}
	defer tree.Close()
	err = linux.CreateFileAs(p.dir, p.name, p.container.rootUID, p.container.rootGID)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make a file in the container to mount the node on: %w", err)
	}
	crashpoint.Here("file to mount on made")
	file, err := linux.OpenPathAt(p.dir, p.name)
	if err != nil {
		return fmt.Errorf("open the file in the container: %w", err)
	}
	defer file.Close()
	if err := p.container.process.MountTree(tree, file); err != nil {
		return fmt.Errorf("mount the node in the container: %w", err)
	}
	crashpoint.Here("node mounted")
	return nil
}

// isMountFile reports whether a file is what mountNode mounts on, as a crash
// may leave it.
func (p place) isMountFile(info linux.FileInfo) bool {
	return p.container.foreign && info.Type == 0 && info.Size == 0 && !info.MountRoot
}

// remove removes the node of the device, and what it was mounted on. What is not
// ours is left alone, since it is the container's.
func (p place) remove(number linux.DeviceNumber) error {
	state, info, err := p.look(number)
	if err != nil {
		return err
	}
	if state == theNode && info.MountRoot {
		if err := p.container.process.UnmountTree(p.dir, p.name); err != nil {
			return fmt.Errorf("unmount the node in the container: %w", err)
		}
		crashpoint.Here("node unmounted")
		if state, info, err = p.look(number); err != nil {
			return err
		}
	}
	if state == theNode || state == another && p.isMountFile(info) {
		if err := linux.RemoveFile(p.dir, p.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the node in the container: %w", err)
		}
		crashpoint.Here("node removed")
	}
	return nil
}
