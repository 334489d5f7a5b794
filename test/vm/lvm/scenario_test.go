package lvm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const size = 8 * rig.MiB

func sized(bytes uint64) volume.Range { return volume.Range{Required: bytes} }

func create(t *testing.T, pool *lvm.Pool, name string, bytes uint64) volume.Info {
	t.Helper()
	info, err := pool.Create(rig.Context(t), volume.Spec{Name: name, Size: sized(bytes)})
	rig.Must(t, err)
	return info
}

// node activates a volume, and returns the path of its device.
func node(t *testing.T, pool *lvm.Pool, name string) string {
	t.Helper()
	device, err := pool.Activate(rig.Context(t), name)
	rig.Must(t, err)
	defer device.Close()
	return device.Node().Name()
}

// fill writes a byte to a range, and makes it durable.
func fill(path string, value byte, offset, length int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	block, err := unix.Mmap(-1, 0, rig.MiB, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // It is aligned.
	if err != nil {
		return err
	}
	defer unix.Munmap(block)
	copy(block, bytes.Repeat([]byte{value}, len(block)))
	for at := offset; at < offset+length; at += int64(len(block)) {
		if _, err := file.WriteAt(block[:min(int64(len(block)), offset+length-at)], at); err != nil {
			return err
		}
	}
	return file.Sync()
}

// wantOnly checks that a range has nothing but one byte.
func wantOnly(t *testing.T, path string, value byte, offset, length int64) {
	t.Helper()
	file, err := os.Open(path)
	rig.Must(t, err)
	defer file.Close()
	rig.Must(t, unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED))
	got := make([]byte, length)
	_, err = file.ReadAt(got, offset)
	rig.Must(t, err)
	if rest := bytes.TrimLeft(got, string([]byte{value})); len(rest) > 0 {
		t.Errorf("%s has %#x at %d, want %#x", path, rest[0], offset+length-int64(len(rest)), value)
	}
}

func wantError(t *testing.T, err, want error, about string) {
	t.Helper()
	t.Logf("%s: %v", about, err) // What an operator reads.
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", about, err, want)
	}
}

// eventually waits for a state.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %s", what)
		}
	}
}

func available(t *testing.T, pool *lvm.Pool) uint64 {
	t.Helper()
	capacity, err := pool.Capacity(rig.Context(t), nil)
	rig.Must(t, err)
	return capacity.Available
}

// What others had on free extents nobody sees, neither in a new volume nor in what one
// has grown by.
func TestFreeExtentsHaveOldData(t *testing.T) {
	m := newGroup(t, 512, 40*rig.MiB)
	run(t, "lvm", "lvcreate", "--yes", "--extents", "100%FREE", "--name", "old", m.group)
	rig.Must(t, fill("/dev/"+m.group+"/old", 'o', 0, 39*rig.MiB))
	run(t, "lvm", "lvremove", "--yes", m.group+"/old")
	pool := m.open(t)
	info := create(t, pool, "new", size)
	path := node(t, pool, "new")
	wantOnly(t, path, 0, 0, size)
	grown, err := pool.Expand(rig.Context(t), "new", sized(info.Size+size))
	rig.Must(t, err)
	wantOnly(t, path, 0, 0, int64(grown))
	// Who does not want it gets what there is.
	_, err = pool.Create(rig.Context(t), volume.Spec{Name: "raw", Size: sized(size), Parameters: map[string]string{"wipe": "none"}})
	rig.Must(t, err)
	wantOnly(t, node(t, pool, "raw"), 'o', 0, size)
	for _, name := range []string{"new", "raw"} {
		rig.Must(t, pool.Deactivate(rig.Context(t), name))
	}
}

// What has no tag of the pool is not seen and not touched, whatever it is called.
func TestForeignVolumes(t *testing.T) {
	m := newGroup(t, 512, 80*rig.MiB)
	pool := m.open(t)
	// One that is the pool's, so that its name is known; and those of others.
	create(t, pool, "mine", size)
	name := ""
	for _, field := range bytes.Fields([]byte(run(t, "lvm", "lvs", "--noheadings", "--options", "lv_name", m.group))) {
		name = string(field)
	}
	rig.Must(t, pool.Delete(rig.Context(t), "mine"))
	eventually(t, "the wiping", func() bool { return len(pool.Status().Wiping) == 0 })
	run(t, "lvm", "lvcreate", "--yes", "--size", "4m", "--name", name, m.group)
	run(t, "lvm", "lvcreate", "--yes", "--size", "4m", "--name", "other", "--addtag", "rawblock.volume=other/mine", m.group)
	for _, lv := range []string{name, "other"} {
		rig.Must(t, fill("/dev/"+m.group+"/"+lv, 'f', 0, 4*rig.MiB))
	}
	list, err := pool.List(rig.Context(t))
	if err != nil || len(list) != 0 {
		t.Errorf("lists %v, %v", list, err)
	}
	_, err = pool.Create(rig.Context(t), volume.Spec{Name: "mine", Size: sized(size)})
	wantError(t, err, volume.ErrPrecondition, "the name of another")
	rig.Must(t, pool.Delete(rig.Context(t), "mine"))
	rig.Must(t, pool.Deactivate(rig.Context(t), "mine"))
	_, err = pool.Activate(rig.Context(t), "mine")
	wantError(t, err, volume.ErrNotFound, "of another")
	create(t, pool, "second", size)
	rig.Must(t, pool.Delete(rig.Context(t), "second"))
	eventually(t, "the wiping", func() bool { return len(pool.Status().Wiping) == 0 })
	for _, lv := range []string{name, "other"} {
		wantOnly(t, "/dev/"+m.group+"/"+lv, 'f', 0, 4*rig.MiB)
	}
	// Two that both say that they are one volume.
	create(t, pool, "twice", size)
	run(t, "lvm", "lvchange", "--addtag", "rawblock.volume=lvm/twice", m.group+"/"+name)
	_, err = pool.Activate(rig.Context(t), "twice")
	wantError(t, err, volume.ErrMismatch, "two of a name")
	wantError(t, pool.Delete(rig.Context(t), "twice"), volume.ErrMismatch, "two of a name")
	// And what a later version may have made.
	run(t, "lvm", "lvchange", "--addtag", "rawblock.volume=lvm/later", "--addtag", "rawblock.colour=red", m.group+"/other")
	if _, err := pool.Get(rig.Context(t), "later"); err == nil || errors.Is(err, volume.ErrNotFound) {
		t.Errorf("one that cannot be understood: %v", err)
	}
	if err := pool.Delete(rig.Context(t), "later"); err == nil {
		t.Error("one that cannot be understood was deleted")
	}
	wantOnly(t, "/dev/"+m.group+"/other", 'f', 0, 4*rig.MiB)
}

// What was deleted is wiped, also where the plugin ended before.
func TestWipingGoesOn(t *testing.T) {
	m := newGroup(t, 512, 40*rig.MiB)
	pool := m.open(t)
	all := available(t, pool)
	create(t, pool, "secret", all)
	rig.Must(t, fill(node(t, pool, "secret"), 's', 0, int64(all)))
	rig.Must(t, pool.Delete(rig.Context(t), "secret"))
	pool = m.open(t) // At once.
	if list, err := pool.List(rig.Context(t)); err != nil || len(list) != 0 {
		t.Errorf("lists %v, %v", list, err)
	}
	eventually(t, "the space", func() bool { return available(t, pool) == all })
	run(t, "lvm", "lvcreate", "--yes", "--zero", "n", "--wipesignatures", "n", "--extents", "100%FREE", "--name", "look", m.group)
	wantOnly(t, "/dev/"+m.group+"/look", 0, 0, int64(all))
}

// A device whose table was taken away is not handed out, and not mended behind the back
// of who has it open.
func TestRevoked(t *testing.T) {
	m := newThin(t, 512, 32*rig.MiB)
	pool := m.open(t)
	info := create(t, pool, "data", size)
	path := node(t, pool, "data")
	rig.Must(t, fill(path, 'd', 0, size))
	holder, err := os.OpenFile(path, os.O_RDWR, 0)
	rig.Must(t, err)
	defer holder.Close()
	run(t, "dmsetup", "load", path, "--table", fmt.Sprintf("0 %d error", info.Size/512))
	run(t, "dmsetup", "suspend", "--noflush", "--nolockfs", path)
	run(t, "dmsetup", "resume", path)
	_, err = pool.Activate(rig.Context(t), "data")
	wantError(t, err, volume.ErrInUse, "activate")
	_, err = pool.Expand(rig.Context(t), "data", sized(info.Size+size))
	wantError(t, err, volume.ErrInUse, "expand")
	_, err = lvm.ThinPool{Pool: pool}.CreateSnapshot(rig.Context(t), "snap", "data")
	wantError(t, err, volume.ErrInUse, "snapshot")
	if err := fill(path, 'x', 0, rig.MiB); !errors.Is(err, unix.EIO) { // Past the page cache.
		t.Errorf("writing to it: %v", err)
	}
	if table := run(t, "dmsetup", "table", path); !strings.Contains(table, "error") {
		t.Errorf("its table was given back: %s", table)
	}
	rig.Must(t, holder.Close())
	wantOnly(t, node(t, pool, "data"), 'd', 0, size)
	// Left suspended, as by a program that was killed.
	run(t, "dmsetup", "suspend", path)
	wantOnly(t, node(t, pool, "data"), 'd', 0, size)
	rig.Must(t, pool.Deactivate(rig.Context(t), "data"))
}

// A device that only has the name is not the volume.
func TestNameOfAnother(t *testing.T) {
	m := newGroup(t, 512, 40*rig.MiB)
	pool := m.open(t)
	create(t, pool, "data", size)
	path := node(t, pool, "data")
	name := string(bytes.TrimSpace([]byte(run(t, "dmsetup", "info", "--columns", "--noheadings", "--options", "name", path))))
	rig.Must(t, pool.Deactivate(rig.Context(t), "data"))
	run(t, "dmsetup", "create", name, "--table", "0 2048 zero")
	_, err := pool.Activate(rig.Context(t), "data")
	wantError(t, err, volume.ErrMismatch, "activate")
	wantError(t, pool.Delete(rig.Context(t), "data"), volume.ErrMismatch, "delete")
	run(t, "dmsetup", "remove", name)
	node(t, pool, "data")
	rig.Must(t, pool.Delete(rig.Context(t), "data"))
}

// Snapshots and clones of a volume in use are what was written to it until then.
func TestCopiesOfVolumeInUse(t *testing.T) {
	m := newThin(t, 512, 64*rig.MiB)
	pool := lvm.ThinPool{Pool: m.open(t)}
	_, err := pool.Create(rig.Context(t), volume.Spec{Name: "data", Size: sized(size), Encryption: volume.LUKS2})
	rig.Must(t, err)
	path := node(t, pool.Pool, "data")
	holder, err := os.OpenFile(path, os.O_RDWR, 0) // Through the page cache.
	rig.Must(t, err)
	defer holder.Close()
	_, err = holder.WriteAt(bytes.Repeat([]byte{'1'}, size), 0)
	rig.Must(t, err)
	snapshot, err := pool.CreateSnapshot(rig.Context(t), "snap", "data")
	rig.Must(t, err)
	if snapshot.Encryption != volume.LUKS2 {
		t.Errorf("the snapshot has the encryption %q", snapshot.Encryption)
	}
	_, err = holder.WriteAt(bytes.Repeat([]byte{'2'}, size), 0)
	rig.Must(t, err)
	spec := volume.Spec{Name: "clone", Size: sized(size), Source: volume.Source{Volume: "data"}}
	_, err = pool.Create(rig.Context(t), spec)
	wantError(t, err, volume.ErrInvalid, "a copy without the encryption")
	spec.Encryption = volume.LUKS2
	info, err := pool.Create(rig.Context(t), spec)
	if err != nil || info.Encryption != volume.LUKS2 {
		t.Fatalf("the clone is %+v, %v", info, err)
	}
	_, err = pool.Create(rig.Context(t), volume.Spec{Name: "restored", Size: sized(size), Source: volume.Source{Snapshot: "snap"}, Encryption: volume.LUKS2})
	rig.Must(t, err)
	wantOnly(t, node(t, pool.Pool, "clone"), '2', 0, size)
	wantOnly(t, node(t, pool.Pool, "restored"), '1', 0, size)
	for _, name := range []string{"data", "clone", "restored"} {
		rig.Must(t, pool.Deactivate(context.Background(), name))
	}
}

// To publish a volume that is staged needs no program of LVM, which may wait for others:
// here none can run, its context having ended.
func TestActiveNeedsNoProgram(t *testing.T) {
	m := newGroup(t, 512, 64*rig.MiB)
	pool := m.open(t)
	want := create(t, pool, "a", size)
	ended, cancel := context.WithCancel(rig.Context(t))
	cancel()
	if _, err := pool.Get(ended, "a"); err == nil {
		t.Fatal("a volume without a device is found without a program")
	}
	path := node(t, pool, "a")
	if got, err := pool.Get(ended, "a"); err != nil || got != want {
		t.Errorf("it is %+v (%v), not %+v", got, err, want)
	}
	if device, err := pool.Activate(ended, "a"); err != nil {
		t.Error(err)
	} else if device.Close(); device.Node().Name() != path {
		t.Errorf("its device is %s, not %s", device.Node().Name(), path)
	}
	grown, err := pool.Expand(rig.Context(t), "a", sized(2*size))
	rig.Must(t, err)
	if got, err := pool.Get(ended, "a"); err != nil || got.Size != grown {
		t.Errorf("once it has grown to %d bytes it is %+v (%v)", grown, got, err)
	}
	rig.Must(t, pool.Deactivate(rig.Context(t), "a"))
	rig.Must(t, pool.Delete(rig.Context(t), "a"))
	if got, err := pool.Get(rig.Context(t), "a"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("once it was deleted it is %+v (%v)", got, err)
	}
}
