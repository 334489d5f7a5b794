package contract

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func (b *bench) life() {
	if got := b.list(); len(got) != 0 {
		b.Errorf("an empty pool lists %v", got)
	}
	info := b.create(pvc, size)
	if got, err := b.Get(b.ctx(), pvc); err != nil || got != info {
		b.Errorf("created %+v, got %+v, %v", info, got, err)
	}
	if got := b.list(); !slices.Equal(got, []string{pvc}) {
		b.Errorf("lists %v", got)
	}
	device := b.activate(pvc)
	if device.Size() != info.Size {
		b.Errorf("promised %d bytes, the device has %d", info.Size, device.Size())
	}
	rig.Must(b, device.CheckFree())
	device.Close()
	node := b.node(pvc)
	b.wantOnly(node, 0, 0, info.Size)
	b.fill(node, 'x', 0, info.Size)
	if again := b.node(pvc); again != node {
		b.Errorf("activated twice: %s and %s", node, again)
	}
	for range 2 {
		rig.Must(b, b.Deactivate(b.ctx(), pvc))
	}
	b.wantOnly(b.node(pvc), 'x', 0, info.Size)
	for range 2 {
		b.delete(pvc)
	}
	_, err := b.Get(b.ctx(), pvc)
	b.wantError(err, volume.ErrNotFound, "get after delete")
	_, err = b.Activate(b.ctx(), pvc)
	b.wantError(err, volume.ErrNotFound, "activate after delete")
	if got := b.list(); len(got) != 0 {
		b.Errorf("after delete: %v", got)
	}
}

func (b *bench) absent() {
	for _, name := range []string{pvc, "never", volume.NameOf("ü" + strings.Repeat("n", 200))} {
		rig.Must(b, b.Delete(b.ctx(), name))
		rig.Must(b, b.Deactivate(b.ctx(), name))
		_, err := b.Get(b.ctx(), name)
		b.wantError(err, volume.ErrNotFound, "get")
		_, err = b.Activate(b.ctx(), name)
		b.wantError(err, volume.ErrNotFound, "activate")
	}
}

// Whatever a volume is called in a request, it is found again by its name.
func (b *bench) names() {
	for _, requested := range []string{
		"a", pvc, "pvc-0a1b2c3d111122223333444455556666", "Data_0.x", strings.Repeat("n", 36), strings.Repeat("n", 37), "ü/../x", strings.Repeat("ü", 64),
	} {
		name := volume.NameOf(requested)
		b.create(name, 1*rig.MiB)
		if got := b.list(); !slices.Equal(got, []string{name}) {
			b.Errorf("%q: created %s, listed %v", requested, name, got)
		}
		b.delete(name)
		b.settled(size)
	}
}

func (b *bench) idempotent() {
	info := b.create(pvc, size)
	for _, asked := range []volume.Range{atLeast(size), exactly(info.Size), {Required: 1, Limit: info.Size}, {}} {
		if again, err := b.Create(b.ctx(), b.spec(pvc, asked)); err != nil || again != info {
			b.Errorf("asked for %+v: got %+v, %v; want %+v", asked, again, err, info)
		}
	}
	for _, asked := range []volume.Range{atLeast(info.Size + 1), {Limit: info.Size - 1}} {
		_, err := b.Create(b.ctx(), b.spec(pvc, asked))
		b.wantError(err, volume.ErrIncompatible, fmt.Sprintf("asked for %+v", asked))
	}
	// Many at once, as when a caller gives up waiting and asks again.
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			got, err := b.Create(b.ctx(), b.spec(second, atLeast(size)))
			if err != nil && !errors.Is(err, volume.ErrAborted) && !b.suite.Single {
				b.Error(err)
			}
			if err == nil && got.Name != second {
				b.Errorf("got %+v", got)
			}
		})
	}
	group.Wait()
	if got := b.list(); !slices.Equal(got, []string{pvc, second}) {
		b.Errorf("lists %v", got)
	}
}

func (b *bench) strict() {
	spec := b.spec(pvc, atLeast(size))
	spec.Parameters = map[string]string{"colour": "red"}
	_, err := b.Create(b.ctx(), spec)
	b.wantError(err, volume.ErrInvalid, "unknown parameter")
	if err == nil || !strings.Contains(err.Error(), `"colour"`) {
		b.Errorf("the key is not named: %v", err)
	}
	_, err = b.Capacity(b.ctx(), spec.Parameters)
	b.wantError(err, volume.ErrInvalid, "unknown parameter")
	if got := b.list(); len(got) != 0 {
		b.Errorf("lists %v", got)
	}
}

func (b *bench) sizes() {
	free := b.available()
	for i, asked := range []volume.Range{atLeast(1), atLeast(1*rig.MiB + 1), {Required: 1, Limit: 2 * rig.MiB}} {
		if b.suite.Single {
			break
		}
		name := fmt.Sprintf("v%d", i)
		info := b.createSpec(b.spec(name, asked))
		device := b.activate(name)
		if device.Size() != info.Size {
			b.Errorf("%+v: promised %d, device has %d", asked, info.Size, device.Size())
		}
		device.Close()
		b.delete(name)
		b.settled(free)
	}
	_, err := b.Create(b.ctx(), b.spec(pvc, atLeast(1<<55)))
	b.wantError(err, volume.ErrOutOfRange, "more than the pool ever has")
	_, err = b.Create(b.ctx(), b.spec(pvc, volume.Range{Limit: 1}))
	b.wantError(err, volume.ErrOutOfRange, "less than a volume can be")
}

func (b *bench) capacity() {
	before := b.available()
	if before < 32*rig.MiB {
		b.Fatalf("room for only %d bytes", before)
	}
	// An exact fit is granted.
	info := b.create(pvc, before)
	if left := b.available(); left >= before || info.Size < before {
		b.Errorf("%d of %d bytes are left, after %d were given", left, before, info.Size)
	}
	for left := b.available(); left > 0; left = b.available() {
		b.create(fmt.Sprintf("rest-%d", left), left)
	}
	_, err := b.Create(b.ctx(), b.spec(second, atLeast(slack)))
	b.wantError(err, volume.ErrExhausted, "from a full pool")
	if _, err := b.Get(b.ctx(), second); !errors.Is(err, volume.ErrNotFound) {
		b.Errorf("what was refused is there: %v", err)
	}
	for _, name := range b.list() {
		b.delete(name)
	}
	// A filesystem may need a little for itself by now, or less than before.
	if after := b.settled(before - rig.MiB); after > before+rig.MiB {
		b.Errorf("room for %d bytes before, %d after", before, after)
	}
}

func (b *bench) race() {
	size := b.available()/2 + rig.MiB
	if b.suite.Single {
		size = b.available() // That of the largest disk.
	}
	var won atomic.Int32
	var group sync.WaitGroup
	for i := range 6 {
		b.cleanUp(fmt.Sprintf("v%d", i))
		group.Go(func() {
			_, err := b.Create(b.ctx(), b.spec(fmt.Sprintf("v%d", i), atLeast(size)))
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, volume.ErrExhausted):
				b.Errorf("got %v", err)
			}
		})
	}
	group.Wait()
	if got := b.list(); won.Load() != 1 || len(got) != 1 {
		b.Errorf("%d creates were granted, and there are %v", won.Load(), got)
	}
}

func (b *bench) wiped() {
	free := b.available()
	for range 2 {
		info := b.create(pvc, free)
		node := b.node(pvc)
		b.wantOnly(node, 0, 0, info.Size)
		b.fill(node, 's', 0, info.Size)
		b.delete(pvc)
		b.settled(free)
	}
	info := b.create(second, free)
	b.wantOnly(b.node(second), 0, 0, info.Size)
}

func (b *bench) inUse() {
	b.create(pvc, size)
	node := b.node(pvc)
	holder, err := os.OpenFile(node, os.O_RDWR|unix.O_EXCL, 0)
	rig.Must(b, err)
	defer holder.Close()
	b.wantError(b.Delete(b.ctx(), pvc), volume.ErrInUse, "delete")
	_, err = holder.WriteAt([]byte("here"), 0)
	rig.Must(b, err)
	rig.Must(b, holder.Sync())
	if got := b.list(); !slices.Equal(got, []string{pvc}) {
		b.Errorf("lists %v", got)
	}
	if got := rig.ReadAt(b, b.node(pvc), 4, 0); got != "here" {
		b.Errorf("it has %q", got)
	}
	rig.Must(b, holder.Close())
	b.delete(pvc)
}

// A plugin that was reinstalled knows everything again.
func (b *bench) reopened() {
	info, node := b.create(pvc, size), b.node(pvc)
	b.fill(node, 'k', 0, info.Size)
	b.Pool = b.medium.Open(b)
	if got, err := b.Get(b.ctx(), pvc); err != nil || got != info {
		b.Errorf("created %+v, got %+v, %v", info, got, err)
	}
	if again := b.node(pvc); again != node {
		b.Errorf("its device was %s, and is %s", node, again)
	}
	rig.Must(b, b.Deactivate(b.ctx(), pvc))
	b.Pool = b.medium.Open(b)
	b.wantOnly(b.node(pvc), 'k', 0, info.Size)
	again, err := b.Create(b.ctx(), b.spec(pvc, exactly(info.Size)))
	if err != nil || again != info {
		b.Errorf("created again: %+v, %v", again, err)
	}
}

func (b *bench) grows() {
	pool, can := b.Pool.(expander)
	if !can || b.suite.Single {
		return
	}
	info := b.create(pvc, size)
	node := b.node(pvc)
	holder, err := os.OpenFile(node, os.O_RDWR, 0)
	rig.Must(b, err)
	defer holder.Close()
	b.fill(node, 'a', 0, info.Size)
	for range 2 {
		if got, err := pool.Expand(b.ctx(), pvc, exactly(info.Size+size)); err != nil || got != info.Size+size {
			b.Fatalf("grown to %d, %v", got, err)
		}
	}
	end, err := holder.Seek(0, 2)
	if err != nil || end != int64(info.Size+size) {
		b.Errorf("the holder sees %d bytes, %v", end, err)
	}
	b.wantOnly(node, 'a', 0, info.Size)
	b.wantOnly(node, 0, info.Size, size)
	b.fill(node, 'b', info.Size, size)
	if got, err := b.Get(b.ctx(), pvc); err != nil || got.Size != info.Size+size {
		b.Errorf("got %+v, %v", got, err)
	}
	if got, err := pool.Expand(b.ctx(), pvc, atLeast(1)); err != nil || got != info.Size+size {
		b.Errorf("to less than it has: %d, %v", got, err)
	}
	_, err = pool.Expand(b.ctx(), pvc, volume.Range{Limit: info.Size})
	b.wantError(err, volume.ErrOutOfRange, "shrink")
	_, err = pool.Expand(b.ctx(), pvc, atLeast(1<<55))
	b.wantError(err, volume.ErrOutOfRange, "more than the pool ever has")
	left := b.available()
	other := b.create(second, size)
	_, err = pool.Expand(b.ctx(), pvc, atLeast(info.Size+size+b.available()+slack))
	b.wantError(err, volume.ErrExhausted, fmt.Sprintf("more than is left beside a volume of %d bytes", other.Size))
	b.delete(second)
	_, err = pool.Expand(b.ctx(), "never", atLeast(1))
	b.wantError(err, volume.ErrNotFound, "a volume that is not there")
	// All that is left.
	all := info.Size + size + b.settled(left-rig.MiB)
	if got, err := pool.Expand(b.ctx(), pvc, exactly(all)); err != nil || got != all {
		b.Errorf("to all there is, %d: got %d, %v", all, got, err)
	}
	b.wantOnly(node, 'b', info.Size, size)
}

// Different volumes do not disturb each other.
func (b *bench) parallel() {
	if b.suite.Single {
		return
	}
	var group sync.WaitGroup
	for i := range 8 {
		name := fmt.Sprintf("v%d", i)
		b.cleanUp(name)
		group.Go(func() {
			for range 2 {
				if err := b.roundTrip(name, byte('a'+i)); err != nil {
					b.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	group.Wait()
	if got := b.list(); len(got) != 0 {
		b.Errorf("left: %v", got)
	}
}

func (b *bench) roundTrip(name string, value byte) error {
	info, err := b.Create(b.ctx(), b.spec(name, atLeast(2*rig.MiB)))
	if err != nil {
		if errors.Is(err, volume.ErrExhausted) {
			return nil // What the others deleted is still being wiped.
		}
		return err
	}
	device, err := b.Activate(b.ctx(), name)
	if err != nil {
		return err
	}
	node := device.Node().Name()
	device.Close()
	b.wantOnly(node, 0, 0, info.Size)
	b.fill(node, value, 0, info.Size)
	b.wantOnly(node, value, 0, info.Size)
	return errors.Join(b.Deactivate(b.ctx(), name), b.Delete(b.ctx(), name))
}
