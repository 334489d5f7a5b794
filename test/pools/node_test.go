package pools

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// filePlugin is a plugin with a pool of files whose directory is known.
type filePlugin struct {
	*rig.Plugin
	dir string
}

func newFilePlugin(t *testing.T, filesystem string) filePlugin {
	t.Helper()
	dir := rig.Filesystem(t, filesystem, 320*rig.MiB)
	pool, err := file.New(t.Context(), "pool", file.Options{Directory: dir, Capacity: 128 * rig.MiB}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return filePlugin{rig.NewPlugin(t, map[string]driver.Pool{"pool": pool}), dir}
}

// attached returns the loop device over the file of a volume, if there is one.
func (p filePlugin) attached(t *testing.T, name string) string {
	t.Helper()
	data, err := os.Open(filepath.Join(p.dir, "volumes", name, "data"))
	rig.Must(t, err)
	defer data.Close()
	device, found, err := blockdev.NewLoops(blockdev.NewSysfs("/sys")).Find(data)
	rig.Must(t, err)
	if !found {
		return ""
	}
	defer device.Close()
	return device.Node().Name()
}

// csi-release-tools #66, csi-driver-host-path #83, #109: leaked loop devices. A
// volume has one as long as it is staged.
func TestLoopDeviceComesAndGoesWithStaging(t *testing.T) {
	plugin := newFilePlugin(t, "ext4")
	v, ctx := create(t, plugin.Plugin, createRequest(name, size)), rig.Context(t)
	target := v.Target(t, "pod-1")
	if got := plugin.attached(t, name); got != "" {
		t.Errorf("before it is staged: %s", got)
	}
	for range 2 {
		rig.Must(t, v.Stage(ctx))
	}
	node := plugin.attached(t, name)
	if node == "" {
		t.Fatal("staged, and there is no device")
	}
	for range 2 {
		rig.Must(t, v.Publish(ctx, target))
	}
	rig.WriteAt(t, target, data, 0)
	if got := rig.ReadAt(t, filepath.Join(plugin.dir, "volumes", name, "data"), len(data), 0); got != data {
		t.Errorf("the file has %q", got)
	}
	wantCode(t, v.Unstage(ctx), codes.FailedPrecondition)
	if got := plugin.attached(t, name); got != node {
		t.Errorf("published, and shown as %q, not %s", got, node)
	}
	rig.Must(t, v.Unpublish(ctx, target))
	for range 2 {
		rig.Must(t, v.Unstage(ctx))
	}
	if got := plugin.attached(t, name); got != "" {
		t.Errorf("after it was unstaged: %s", got)
	}
}

// A final error of NodeStageVolume may mean that no NodeUnstageVolume follows.
func TestStageThatFailsLeavesNoLoopDevice(t *testing.T) {
	plugin := newFilePlugin(t, "ext4")
	v, ctx := create(t, plugin.Plugin, createRequest(name, size)), rig.Context(t)
	rig.Must(t, v.Stage(ctx))
	v.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	wantCode(t, v.Stage(ctx), codes.AlreadyExists)
	if got := plugin.attached(t, name); got == "" {
		t.Error("a second staging, which was refused, took the device of the first")
	}
	rig.Must(t, v.Unstage(ctx))

	// Somebody attached the file and claims the device.
	data, err := os.OpenFile(filepath.Join(plugin.dir, "volumes", name, "data"), os.O_RDWR, 0)
	rig.Must(t, err)
	defer data.Close()
	device, _, err := blockdev.NewLoops(blockdev.NewSysfs("/sys")).Attach(data, blockdev.LoopOptions{BlockSize: 512})
	rig.Must(t, err)
	holder, err := os.OpenFile(device.Node().Name(), os.O_RDONLY|unix.O_EXCL, 0)
	device.Close()
	rig.Must(t, err)
	wantCode(t, v.Stage(ctx), codes.FailedPrecondition)
	rig.Must(t, holder.Close())
	if got := plugin.attached(t, name); got != "" {
		t.Errorf("still attached: %s", got)
	}
}

// harvester docs #519: after a reboot kubelet published without staging. The loop
// device has gone with the last boot.
func TestPublishedWithoutStaging(t *testing.T) {
	plugin := newFilePlugin(t, "ext4")
	v, ctx := create(t, plugin.Plugin, createRequest(name, size)), rig.Context(t)
	target := v.Target(t, "pod-1")
	rig.Must(t, os.WriteFile(target, nil, 0o600))
	rig.Must(t, v.Publish(ctx, target))
	rig.WriteAt(t, target, data, 0)
	rig.Must(t, v.Unpublish(ctx, target))
	rig.Must(t, v.Unstage(ctx))
	if got := plugin.attached(t, name); got != "" {
		t.Errorf("it is still attached: %s", got)
	}
}

// The volume's file was put back from a backup: another file under the same name.
// The device of the old one is not handed out.
func TestStaleLoopDeviceIsNotPublished(t *testing.T) {
	plugin := newFilePlugin(t, "ext4")
	v, ctx := create(t, plugin.Plugin, createRequest(name, size)), rig.Context(t)
	target, path := v.Target(t, "pod-1"), filepath.Join(plugin.dir, "volumes", name, "data")
	rig.Must(t, v.Stage(ctx))
	stale := plugin.attached(t, name)
	rig.Must(t, os.Remove(path))
	rig.Must(t, os.WriteFile(path, make([]byte, size), 0o600))
	wantCode(t, v.Publish(ctx, target), codes.FailedPrecondition)
	if _, err := os.Lstat(target); err == nil {
		t.Error("something was published")
	}
	rig.Must(t, v.Unstage(ctx))
	rig.Must(t, v.Stage(ctx))
	rig.Must(t, v.Publish(ctx, target))
	if now := plugin.attached(t, name); now == stale || now == "" {
		t.Errorf("staged again as %q, it was %s", now, stale)
	}
	rig.Must(t, v.Unpublish(ctx, target))
	rig.Must(t, v.Unstage(ctx))
	loop, err := os.Open(stale)
	rig.Must(t, err)
	defer loop.Close()
	rig.Must(t, linux.ClearLoop(loop))
}

// The resizer leaves all to the node. What is published for reading grows too.
func TestNodeExpandVolume(t *testing.T) {
	plugin := newFilePlugin(t, "xfs")
	v, ctx := create(t, plugin.Plugin, createRequest(name, size)), rig.Context(t)
	v.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	rig.Must(t, v.Stage(ctx))
	writer, reader := v.Target(t, "pod-1"), v.Target(t, "pod-2")
	rig.Must(t, v.Publish(ctx, writer))
	rig.Must(t, v.PublishReadOnly(ctx, reader))
	holder, err := os.OpenFile(writer, os.O_RDWR, 0)
	rig.Must(t, err)
	defer holder.Close()
	expand := func(path string, required, limit int64) (int64, error) {
		response, err := plugin.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
			VolumeId: v.ID, VolumePath: path, CapacityRange: &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit},
		})
		return response.GetCapacityBytes(), err
	}
	for _, path := range []string{writer, reader, v.Staging} {
		if got, err := expand(path, 3*size, 0); err != nil || got != 3*size {
			t.Errorf("%s: grown to %d, %v", path, got, err)
		}
	}
	if end, err := holder.Seek(0, 2); err != nil || end != 3*size {
		t.Errorf("who has it open sees %d bytes, %v", end, err)
	}
	for about, test := range map[string]struct {
		required, limit int64
		code            codes.Code
	}{
		"smaller":            {1, 0, codes.OK},
		"shrink":             {1, size, codes.OutOfRange},
		"more than is left":  {121 * rig.MiB, 0, codes.OK}, // 128 MiB are.
		"beyond the pool":    {129 * rig.MiB, 0, codes.OutOfRange},
		"negative":           {-1, 0, codes.InvalidArgument},
		"limit below":        {2, 1, codes.InvalidArgument},
		"no such number fit": {121*rig.MiB + 1, 121*rig.MiB + 2, codes.OutOfRange},
	} {
		if _, err := expand(writer, test.required, test.limit); status.Code(err) != test.code {
			t.Errorf("%s: got %v, want %s", about, err, test.code)
		}
	}
	create(t, plugin.Plugin, createRequest("other", rig.MiB))
	_, err = expand(writer, 128*rig.MiB, 0)
	wantCode(t, err, codes.ResourceExhausted) // Not infeasible: it is tried again.
}

// A snapshot of a volume that is being written to is what a power cut would have
// left: of two blocks that are written one after the other, never the later alone.
func TestSnapshotOfAVolumeInUse(t *testing.T) {
	for _, filesystem := range []string{"xfs", "btrfs"} {
		t.Run(filesystem, func(t *testing.T) {
			plugin := newFilePlugin(t, filesystem)
			v, ctx := create(t, plugin.Plugin, createRequest(name, size)), rig.Context(t)
			rig.Must(t, v.Stage(ctx))
			target := v.Target(t, "pod-1")
			rig.Must(t, v.Publish(ctx, target))
			stop := writeCounters(t, target)
			for i := range 10 {
				id := name + string(rune('a'+i))
				snapshot, err := plugin.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: id, SourceVolumeId: v.ID})
				rig.Must(t, err)
				first, second := readCounters(t, filepath.Join(plugin.dir, "snapshots", id, "data"))
				if first == 0 || first != second && first != second+1 {
					t.Errorf("the first block was written %d times, the second %d times", first, second)
				}
				_, err = plugin.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshot.GetSnapshot().GetSnapshotId()})
				rig.Must(t, err)
			}
			stop()
		})
	}
}

// The places of the two counters, far apart.
const firstCounter, secondCounter = 0, size - 4096

// writeCounters writes a number that rises to one block and then to another, past
// all caches, until stop is called. It returns when it has begun.
func writeCounters(t *testing.T, path string) (stop func()) {
	t.Helper()
	device, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0)
	rig.Must(t, err)
	// Memory of pages is aligned as direct I/O wants it.
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	rig.Must(t, err)
	var ended atomic.Bool
	begun, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for count := uint64(1); !ended.Load(); count++ {
			binary.LittleEndian.PutUint64(block, count)
			for _, place := range []int64{firstCounter, secondCounter} {
				if _, err := device.WriteAt(block, place); err != nil {
					t.Error(err)
					return
				}
			}
			if count == 1 {
				close(begun)
			}
		}
	}()
	<-begun
	return func() {
		ended.Store(true)
		<-done
		device.Close()
		rig.Must(t, unix.Munmap(block))
	}
}

func readCounters(t *testing.T, path string) (first, second uint64) {
	t.Helper()
	read := func(place int64) uint64 {
		return binary.LittleEndian.Uint64([]byte(rig.ReadAt(t, path, 8, place)))
	}
	return read(firstCounter), read(secondCounter)
}

// What was written to the device, and is still in its page cache, is part of it.
func TestSnapshotHasWhatWasWrittenBefore(t *testing.T) {
	plugin := newFilePlugin(t, "xfs")
	v, ctx := create(t, plugin.Plugin, createRequest(name, size)), rig.Context(t)
	rig.Must(t, v.Stage(ctx))
	target := v.Target(t, "pod-1")
	rig.Must(t, v.Publish(ctx, target))
	device, err := os.OpenFile(target, os.O_WRONLY, 0)
	rig.Must(t, err)
	defer device.Close()
	_, err = device.WriteAt([]byte(data), 4096)
	rig.Must(t, err)
	_, err = plugin.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: v.ID})
	rig.Must(t, err)
	if got := rig.ReadAt(t, filepath.Join(plugin.dir, "snapshots/snap/data"), len(data), 4096); got != data {
		t.Errorf("it has %q", got)
	}
}

// Without reflink a copy of a volume in use would mix different times.
func TestSnapshotWithoutReflink(t *testing.T) {
	plugin := newFilePlugin(t, "ext4")
	v, ctx := create(t, plugin.Plugin, createRequest(name, size)), rig.Context(t)
	rig.Must(t, v.Stage(ctx))
	request := &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: v.ID}
	_, err := plugin.CreateSnapshot(ctx, request)
	wantCode(t, err, codes.FailedPrecondition)
	if err == nil || !strings.Contains(err.Error(), "reflink") {
		t.Errorf("got %v", err)
	}
	clone := createRequest("clone", size)
	clone.VolumeContentSource = fromVolume(v.ID)
	_, err = plugin.CreateVolume(ctx, clone)
	wantCode(t, err, codes.FailedPrecondition)
	rig.Must(t, v.Unstage(ctx))
	for range 2 {
		_, err = plugin.CreateSnapshot(ctx, request)
		rig.Must(t, err)
	}
}

// Thick: a write never meets a full filesystem, whoever filled it.
func TestThickVolumeCanAlwaysBeWritten(t *testing.T) {
	for _, filesystem := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(filesystem, func(t *testing.T) {
			plugin := newFilePlugin(t, filesystem)
			v, ctx := create(t, plugin.Plugin, createRequest(name, 2*size)), rig.Context(t)
			rig.Must(t, v.Stage(ctx))
			target := v.Target(t, "pod-1")
			rig.Must(t, v.Publish(ctx, target))
			fillUp(t, filepath.Join(plugin.dir, "somebody-elses"))
			for _, letter := range []string{"a", "b"} { // Twice: it is overwritten in place.
				rig.WriteAt(t, target, strings.Repeat(letter, 2*size), 0)
			}
			if got := rig.ReadAt(t, target, 1, 2*size-1); got != "b" {
				t.Errorf("it has %q", got)
			}
		})
	}
}

// fillUp writes a file until the filesystem is full.
func fillUp(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	rig.Must(t, err)
	defer file.Close()
	for block := make([]byte, rig.MiB); ; {
		if _, err := file.Write(block); err != nil {
			break
		}
	}
	file.Sync() //nolint:errcheck // It is full.
}
