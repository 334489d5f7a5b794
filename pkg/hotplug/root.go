package hotplug

import (
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// errStarting says that a container does not have its root directory yet: a matter of
// moments, to be tried again.
var errStarting = fmt.Errorf("%w: the container is still being started; try again", volume.ErrAborted)

// openRoot opens the root directory of the container, which is proven not to be that of
// the host: what is made below the handle is made there, whatever becomes of the
// process. Errors: errStarting.
func (c *container) openRoot() (*linux.File, linux.FileInfo, error) {
	root, err := c.process.OpenRoot()
	if err != nil {
		return nil, linux.FileInfo{}, fmt.Errorf("open the root of %s: %w", c.process.Name(), err)
	}
	info, err := linux.Stat(root)
	if err == nil {
		err = c.checkOwnRoot(info)
	}
	if err != nil {
		root.Close()
		return nil, linux.FileInfo{}, err
	}
	return root, info, nil
}

func (c *container) checkOwnRoot(info linux.FileInfo) error {
	other, err := c.processes.WhoseRoot(info.ID, c.process.PID())
	if err == nil && other != 0 {
		err = fmt.Errorf("%w: its %s still has the root directory of process %d, which is not in it", errStarting, c.process.Name(), other)
	}
	return err
}

// checkRoot returns an error where the place is not in the root that the container has
// now, or the container has another user: it is still being started then, or changes its
// root itself. Errors: volume.ErrAborted, errStarting.
func (p place) checkRoot() error {
	root, info, err := p.container.openRoot()
	if err != nil {
		return err
	}
	root.Close()
	if info.ID != p.root.ID || info.Mount != p.root.Mount {
		return fmt.Errorf("%w: the container has changed its root directory while the node was made; try again", volume.ErrAborted)
	}
	uid, gid, err := p.container.processes.Owner(p.container.process.PID())
	if err != nil {
		return err
	}
	if uid != p.container.uid || gid != p.container.gid {
		return fmt.Errorf("%w: its user has changed while the node was made", errStarting)
	}
	return nil
}
