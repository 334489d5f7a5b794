package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Survey is a pool as its directory has it, for who must not change it: nothing is made
// and nothing locked, so the plugin may run or not. Its methods may be called
// concurrently.
type Survey struct{ pool *Pool }

// Look opens the directory of a pool for looking. The caller closes it. Errors:
// volume.ErrNotFound where the directory does not exist.
func Look(name string, options Options, sysfs blockdev.Sysfs) (*Survey, error) {
	options.Overcommit = max(options.Overcommit, 1)
	dir, err := os.Open(options.Directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the directory %s of pool %s; the plugin makes it when it starts", volume.ErrNotFound, options.Directory, name)
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	// Whether files can share blocks is found out by writing; where they cannot, none
	// are shared.
	return &Survey{&Pool{name: name, options: options, dir: dir, sysfs: sysfs, loops: blockdev.NewLoops(sysfs), reflink: true}}, nil
}

// Close closes the directory.
func (s *Survey) Close() {
	s.pool.dir.Close() //nolint:errcheck,gosec // Nothing was written to it.
}

// List returns all volumes, in no order.
func (s *Survey) List(ctx context.Context) ([]volume.Info, error) { return s.pool.List(ctx) }

// Capacity returns what could be made if the plugin ran.
func (s *Survey) Capacity(ctx context.Context, parameters map[string]string) (volume.Capacity, error) {
	return s.pool.Capacity(ctx, parameters)
}

// Health returns what is wrong with the pool, VolumeHealth with a volume, and Missing the
// volumes that are damaged.
func (s *Survey) Health(ctx context.Context) ([]volume.Condition, []linux.DeviceNumber, error) {
	return s.pool.Health(ctx)
}

// VolumeHealth is described with Health. Errors: volume.ErrNotFound.
func (s *Survey) VolumeHealth(ctx context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error) {
	return s.pool.VolumeHealth(ctx, name)
}

// Missing is described with Health.
func (s *Survey) Missing() []string { return s.pool.Missing() }

// Medium returns where a volume is. Errors: volume.ErrNotFound.
func (s *Survey) Medium(name string) (volume.Medium, error) { return s.pool.Medium(name) }

// Medium returns where a volume is. Errors: volume.ErrNotFound.
func (p *Pool) Medium(name string) (volume.Medium, error) {
	r, info, err := p.volume(name).read()
	if err != nil {
		return volume.Medium{}, fmt.Errorf("volume %s of pool %s: %w", name, p.name, err)
	}
	medium := volume.Medium{Kind: "file", Path: p.volume(name).data()}
	if r.Thin {
		medium.Detail = fmt.Sprintf("thin, %d of %d bytes stored", min(info.Allocated, info.Size), info.Size)
	}
	return medium, nil
}
