package file

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// CheckForeign returns an error where one of the layers is a loop device over a file of
// the pool, whoever made it, be it of a volume that was deleted; see driver's owner.
//
// The file must be on the pool's filesystem, and be called as the files of a pool are.
// The name can lie only so that more is refused: who could give the file of a volume
// another one owns the host.
func (p *Pool) CheckForeign(_ context.Context, layers []blockdev.Layer) error {
	directory, err := linux.StatPath(p.options.Directory)
	if err != nil {
		return fmt.Errorf("look at the directory of pool %s: %w", p.name, err)
	}
	for _, layer := range layers {
		if layer.Path != "" && layer.File.Device == directory.ID.Device && p.isData(layer.Path) {
			return fmt.Errorf("%w: it is, lies on or carries device %s, which shows a file of pool %s, %s; a PersistentVolume cannot name it",
				volume.ErrInUse, layer.Number, p.name, layer.Path)
		}
	}
	return nil
}

// isData reports whether a path ends as that of the data of an entry does.
func (p *Pool) isData(path string) bool {
	path = strings.TrimSuffix(path, " (deleted)") // d_path in the kernel's fs/d_path.c.
	kind := filepath.Base(filepath.Dir(filepath.Dir(path)))
	dirs := []string{filepath.Base(p.volumes()), filepath.Base(p.snapshots()), filepath.Base(p.work())}
	return filepath.Base(path) == filepath.Base(entry{}.data()) && slices.Contains(dirs, kind)
}
