package contract

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// bench is one pool on a medium of its own, under one test.
type bench struct {
	*testing.T
	driver.Pool
	suite  Suite
	medium Medium
}

// slack is more than a filesystem keeps back for itself, in bytes.
const slack = 2 * rig.MiB

func (b *bench) ctx() context.Context { return rig.Context(b.T) }

func (b *bench) spec(name string, size volume.Range) volume.Spec {
	return volume.Spec{Name: name, Size: size, Parameters: b.suite.Parameters}
}

func exactly(size uint64) volume.Range { return volume.Range{Required: size, Limit: size} }

func atLeast(size uint64) volume.Range { return volume.Range{Required: size} }

// create makes a volume of at least a size, which is taken down with the test.
func (b *bench) create(name string, size uint64) volume.Info {
	b.Helper()
	return b.createSpec(b.spec(name, atLeast(size)))
}

func (b *bench) createSpec(spec volume.Spec) volume.Info {
	b.Helper()
	b.cleanUp(spec.Name)
	info, err := b.Create(b.ctx(), spec)
	rig.Must(b, err)
	if info.Name != spec.Name || !spec.Size.Contains(info.Size) || info.Source != spec.Source {
		b.Fatalf("asked for %+v, got %+v", spec, info)
	}
	return info
}

// cleanUp detaches the device of a volume at the end.
func (b *bench) cleanUp(name string) {
	b.Cleanup(func() {
		if err := b.Deactivate(context.Background(), name); err != nil {
			b.Error(err)
		}
	})
}

// activate opens the device of a volume until the test ends, or it is closed.
func (b *bench) activate(name string) *blockdev.Device {
	b.Helper()
	device, err := b.Activate(b.ctx(), name)
	rig.Must(b, err)
	return device
}

// node returns the path of the node of a volume's device.
func (b *bench) node(name string) string {
	b.Helper()
	device := b.activate(name)
	defer device.Close()
	return device.Node().Name()
}

func (b *bench) delete(name string) {
	b.Helper()
	rig.Must(b, b.Deactivate(b.ctx(), name))
	rig.Must(b, b.Delete(b.ctx(), name))
}

func (b *bench) available() uint64 {
	b.Helper()
	capacity, err := b.Capacity(b.ctx(), b.suite.Parameters)
	rig.Must(b, err)
	if capacity.MaxVolume > capacity.Available || capacity.MaxVolume > 0 && capacity.MinVolume == 0 {
		b.Errorf("capacity is %+v", capacity)
	}
	return capacity.MaxVolume
}

// settled returns the capacity once it is at least want: what was deleted may be
// wiped first.
func (b *bench) settled(want uint64) uint64 {
	b.Helper()
	for range 600 {
		if got := b.available(); got >= want {
			return got
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.Fatalf("there is room for %d bytes, want %d", b.available(), want)
	return 0
}

func (b *bench) list() []string {
	b.Helper()
	volumes, err := b.List(b.ctx())
	rig.Must(b, err)
	names := []string{}
	for _, info := range volumes {
		names = append(names, info.Name)
	}
	slices.Sort(names)
	return names
}

func (b *bench) wantError(err, want error, about string) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Errorf("%s: got %v, want %v", about, err, want)
	}
}

// fill writes a byte everywhere from an offset on, past the page cache.
func (b *bench) fill(path string, value byte, offset, length uint64) {
	b.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_SYNC, 0)
	rig.Must(b, err)
	defer file.Close()
	block := bytes.Repeat([]byte{value}, rig.MiB)
	for at := offset; at < offset+length; at += uint64(len(block)) {
		_, err := file.WriteAt(block[:min(uint64(len(block)), offset+length-at)], int64(at))
		rig.Must(b, err)
	}
}

// wantOnly checks that a range has nothing but one byte.
func (b *bench) wantOnly(path string, value byte, offset, length uint64) {
	b.Helper()
	file, err := os.Open(path)
	rig.Must(b, err)
	defer file.Close()
	want, got := bytes.Repeat([]byte{value}, rig.MiB), make([]byte, rig.MiB)
	for at := offset; at < offset+length; at += uint64(len(got)) {
		n := min(uint64(len(got)), offset+length-at)
		_, err := file.ReadAt(got[:n], int64(at))
		rig.Must(b, err)
		if !bytes.Equal(got[:n], want[:n]) {
			b.Errorf("%s: not only %q in the MiB at %d", path, value, at)
			return
		}
	}
}
