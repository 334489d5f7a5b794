package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Activate returns the device of a volume; see driver.Pool.
func (p *Pool) Activate(ctx context.Context, name string) (*blockdev.Device, error) {
	unlock, err := p.lockVolume(name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, _, err := p.volume(name).read()
	if err != nil {
		return nil, fmt.Errorf("volume %s of pool %s: %w", name, p.name, err)
	}
	data, err := linux.OpenFile(p.volume(name).data(), true)
	if err != nil {
		return nil, fmt.Errorf("open data: %w", err)
	}
	defer data.Close()
	device, directIO, err := p.loops.Attach(data, p.loopOptions(name, r))
	if err != nil {
		return nil, fmt.Errorf("volume %s of pool %s: %w", name, p.name, err)
	}
	if !directIO {
		klog.FromContext(ctx).Info("The filesystem cannot do direct I/O with blocks of this size, so what is written is cached twice",
			"pool", p.name, "name", name, "blockSize", r.BlockSize)
	}
	return device, nil
}

func (p *Pool) loopOptions(name string, r record) blockdev.LoopOptions {
	return blockdev.LoopOptions{Label: "rawblock:" + p.name + "/" + name, BlockSize: r.BlockSize}
}

// Deactivate detaches the device of a volume; see driver.Pool. Errors: volume.ErrInUse
// while it is published.
func (p *Pool) Deactivate(ctx context.Context, name string) error {
	unlock, err := p.lockVolume(name)
	if err != nil {
		return err
	}
	defer unlock()
	inUse, err := p.detach(ctx, p.volume(name))
	if errors.Is(err, syscall.EIO) {
		// The disk of the filesystem has gone, and the file is not in memory, as one that
		// has a device is: an open file holds the names that lead to it (struct path).
		klog.FromContext(ctx).Error(err, "The filesystem of a pool cannot be read; the volume has no device", "pool", p.name, "name", name)
		return nil
	}
	if inUse {
		klog.FromContext(ctx).Info("The device stays, since it is open; it ends when the last one closes it", "pool", p.name, "name", name, "reason", p.user(p.volume(name)))
	}
	return err
}

// detach ends the device of a volume that may not exist. Errors: volume.ErrInUse where
// the kernel shows that it is published, whoever says otherwise.
func (p *Pool) detach(ctx context.Context, e entry) (inUse bool, err error) {
	data, err := linux.OpenPath(e.data())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open data: %w", err)
	}
	defer data.Close()
	device, found, err := p.loops.Find(data)
	if err == nil && found {
		err = device.CheckUnpublished()
		device.Close() // It would keep the device.
	}
	if err != nil {
		return false, err
	}
	return p.loops.Detach(ctx, data)
}

// user returns an error that says who has the device of a volume open, of which detach
// says that it is in use. It wraps volume.ErrInUse.
func (p *Pool) user(e entry) error {
	err := fmt.Errorf("%w: a process of this node has its device open (see losetup -l and fuser)", volume.ErrInUse)
	data, openErr := linux.OpenPath(e.data())
	if openErr != nil {
		return err
	}
	defer data.Close()
	device, found, findErr := p.loops.Find(data)
	if findErr != nil || !found {
		return err
	}
	defer device.Close()
	if claim := device.CheckFree(); errors.Is(claim, volume.ErrInUse) {
		return claim
	}
	return err
}

// Expand grows a volume; see driver's expander. The space is taken first, then
// the device takes over the size of the file: a repeated call completes it.
func (p *Pool) Expand(_ context.Context, name string, size volume.Range) (uint64, error) {
	unlock, err := p.lockVolume(name)
	if err != nil {
		return 0, err
	}
	defer unlock()
	e := p.volume(name)
	r, info, err := e.read()
	if err != nil {
		return 0, fmt.Errorf("volume %s of pool %s: %w", name, p.name, err)
	}
	want, err := size.Choose(info.Size, info.Size, sizeUnit)
	if err != nil {
		return 0, fmt.Errorf("volume %s has %d bytes and does not shrink: %w", name, info.Size, err)
	}
	data, err := linux.OpenFile(e.data(), true)
	if err != nil {
		return 0, fmt.Errorf("open data: %w", err)
	}
	defer data.Close()
	if want > info.Size {
		if err := p.grow(data, info.Size, want, r.Thin); err != nil {
			return 0, err
		}
		crashpoint.Here("file grown")
	}
	device, found, err := p.loops.Find(data)
	if err != nil || !found {
		return want, err
	}
	device.Close()
	device, _, err = p.loops.Attach(data, p.loopOptions(name, r))
	if err != nil {
		return 0, err
	}
	defer device.Close()
	return device.Size(), nil
}

func (p *Pool) grow(data linux.Descriptor, from, to uint64, thin bool) error {
	p.space.Lock()
	defer p.space.Unlock()
	if err := p.require(to, to-from, thin); err != nil {
		return err
	}
	if err := p.resize(data, to, thin); err != nil {
		return err
	}
	return linux.Sync(data)
}
