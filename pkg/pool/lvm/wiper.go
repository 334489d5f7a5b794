package lvm

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

const (
	// wipeChunk is how many bytes are wiped by one call: little enough to end soon when
	// the plugin does.
	wipeChunk = 64 << 20
	// wipeStep is the step of a pool.
	wipeStep = 16 << 30
	// wipeRetry is how long a space waits that could not be wiped.
	wipeRetry = time.Minute
)

// progress is how far the wiping of a space is.
type progress struct {
	entry
	// logged is how many tenths of it were logged as done.
	logged uint64
	// failed is why the last attempt failed, and retry is when the next one is due.
	failed error
	retry  time.Time
}

// blank wipes a logical volume that nobody has been given, and takes its device away.
func (p *Pool) blank(ctx context.Context, g lvm.Group, e entry) error {
	method := e.wipe.method()
	err := p.wipeDevice(ctx, g, e, method, func(uint64) error { return nil })
	if errors.Is(err, syscall.EOPNOTSUPP) && method == blockdev.WipeSecure {
		return fmt.Errorf("%w: %s %s: the disks of volume group %s on this node cannot erase securely: %w", volume.ErrExhausted, WipeParameter, e.wipe, g.Name, err)
	}
	if err != nil {
		return fmt.Errorf("wipe the extents of %s/%s: %w", g.Name, e.Name, err)
	}
	crashpoint.Here("extents wiped")
	return p.inTurn(context.WithoutCancel(ctx), func(ctx context.Context) error { return p.deactivate(ctx, g, e) })
}

// wipeDevice wipes a logical volume through its device, from where that was left, so that
// nothing beside it can be reached. It tells how much is done.
func (p *Pool) wipeDevice(ctx context.Context, g lvm.Group, e entry, method blockdev.WipeMethod, tell func(done uint64) error) error {
	opened, err := p.makeDevice(ctx, g, e)
	if err != nil {
		return err
	}
	raw, err := opened.Raw(linux.RawWrite | linux.RawExclusive)
	size := opened.Size()
	opened.Close()
	if err != nil {
		return err
	}
	defer raw.Close()
	if size != e.Size {
		return fmt.Errorf("%w: its device has %d bytes, not %d", volume.ErrMismatch, size, e.Size)
	}
	for done := min(e.wiped, size); done < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		chunk := min(size-done, wipeChunk)
		if err := blockdev.Wipe(raw, method, done, chunk); err != nil {
			return err
		}
		done += chunk
		if err := tell(done); err != nil {
			return err
		}
	}
	return nil
}

// addWiping has a space wiped.
func (p *Pool) addWiping(e entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wiping[e.UUID] == nil {
		p.wiping[e.UUID] = &progress{entry: e}
	}
}

// startWiper starts the wiper where there is something to wipe.
func (p *Pool) startWiper(g lvm.Group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wiper || p.background.Err() != nil || p.nextWiping() == nil {
		return
	}
	p.wiper = true
	p.workers.Go(func() { p.wipeAll(g) })
}

// nextWiping returns a space whose time has come, or nil. p.mu is locked.
func (p *Pool) nextWiping() *progress {
	for _, space := range p.wiping {
		if space.failed == nil || time.Now().After(space.retry) {
			return space
		}
	}
	return nil
}

// wipeAll wipes all there is to wipe. What fails is tried again when the volume group is
// looked at.
func (p *Pool) wipeAll(g lvm.Group) {
	for {
		p.mu.Lock()
		space := p.nextWiping()
		if space == nil || p.background.Err() != nil {
			p.wiper = false
			p.mu.Unlock()
			return
		}
		e := space.entry
		p.mu.Unlock()
		err := p.wipeSpace(p.background, g, e)
		if err != nil && p.background.Err() == nil {
			p.logger.Error(err, "Space cannot be wiped and is not offered", "logicalVolume", e.Name, "size", e.Size)
		}
		p.mu.Lock()
		if space.failed, space.retry = err, time.Now().Add(wipeRetry); err == nil {
			delete(p.wiping, e.UUID)
		}
		p.mu.Unlock()
	}
}

// wipeSpace wipes a space and gives its extents back.
func (p *Pool) wipeSpace(ctx context.Context, g lvm.Group, e entry) error {
	recorded := e.wiped
	err := p.wipeDevice(ctx, g, e, e.wipe.method(), func(done uint64) error {
		p.logProgress(e, done)
		if done-recorded < p.options.step || done == e.Size {
			return nil
		}
		// So that a restart does not begin again.
		next := e
		next.wiped = done
		err := p.inTurn(ctx, func(ctx context.Context) error { return p.retag(ctx, g, e, next.record) })
		e, recorded = next, done
		crashpoint.Here("progress of wiping recorded")
		return err
	})
	if errors.Is(err, syscall.EOPNOTSUPP) && e.wipe == wipeSecure {
		return fmt.Errorf("its disks cannot erase securely; wipe it (blkdiscard -z) and remove it (lvremove) by hand: %w", err)
	}
	if err != nil {
		return err
	}
	crashpoint.Here("space wiped")
	if err := p.inTurn(ctx, func(ctx context.Context) error { return p.remove(ctx, g, e) }); err != nil {
		return err
	}
	p.logger.Info("Space is wiped and offered", "logicalVolume", e.Name, "size", e.Size)
	return nil
}

// logProgress logs each tenth that is done.
func (p *Pool) logProgress(e entry, done uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	space := p.wiping[e.UUID]
	space.wiped = done
	if tenths := done / (e.Size/10 + 1); tenths > space.logged {
		space.logged = tenths
		p.logger.Info("Space is being wiped", "logicalVolume", e.Name, "percent", tenths*10, "bytesLeft", e.Size-done)
	}
}
