package file_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

var sysfs = blockdev.NewSysfs("/sys")

func TestDirectoriesThatAreRefused(t *testing.T) {
	rig.RequireRoot(t)
	dir := t.TempDir()
	rig.Must(t, os.WriteFile(dir+"/file", nil, 0o600))
	taken, err := file.New(t.Context(), "first", file.Options{Directory: dir + "/taken"}, sysfs)
	rig.Must(t, err)
	defer taken.Close()
	rig.Must(t, os.Symlink(dir+"/taken", dir+"/link"))
	for about, test := range map[string]struct{ directory, says string }{
		"a file":                   {dir + "/file", "is no directory"},
		"below a file":             {dir + "/file/x", "is no directory"},
		"of another pool":          {dir + "/taken", "is used by another pool or process"},
		"of another pool, by link": {dir + "/link", "is used by another pool or process"},
	} {
		t.Run(about, func(t *testing.T) {
			pool, err := file.New(t.Context(), "second", file.Options{Directory: test.directory}, sysfs)
			if err == nil {
				pool.Close()
			}
			if !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), test.directory) {
				t.Errorf("got %v, want the directory and the words %q", err, test.says)
			}
		})
	}
}

// What a crash left unfinished is removed, and counts for nothing.
func TestUnfinishedWorkIsRemoved(t *testing.T) {
	m := &medium{options: file.Options{Directory: directory(t, "ext4"), Capacity: 64 * rig.MiB}}
	pool := m.open(t)
	empty := capacity(t, pool, nil)
	for _, name := range []string{"make-volume-1", "make-snapshot-1", "gone-1"} {
		dir := filepath.Join(m.options.Directory, "work", name)
		rig.Must(t, os.MkdirAll(dir, 0o700))
		rig.Must(t, os.WriteFile(filepath.Join(dir, "data"), make([]byte, rig.MiB), 0o600))
	}
	m.open(t).Close() // Waits for what is removed.
	left, err := os.ReadDir(filepath.Join(m.options.Directory, "work"))
	if err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if got := capacity(t, m.open(t), nil); got != empty {
		t.Errorf("room for %d bytes, was %d", got, empty)
	}
}

func capacity(t *testing.T, pool *file.Pool, parameters map[string]string) uint64 {
	t.Helper()
	got, err := pool.Capacity(t.Context(), parameters)
	rig.Must(t, err)
	return got.Available
}

// A volume whose record is damaged is not handed out, and hides no other; its
// space is not given away.
func TestDamagedRecord(t *testing.T) {
	m := &medium{options: file.Options{Directory: directory(t, "ext4"), Capacity: 64 * rig.MiB}}
	pool := m.open(t)
	for _, name := range []string{"good", "bad"} {
		_, err := pool.Create(t.Context(), volume.Spec{Name: name, Size: volume.Range{Required: 8 * rig.MiB}})
		rig.Must(t, err)
	}
	path := filepath.Join(m.options.Directory, "volumes/bad/record.json")
	for about, content := range map[string]string{"empty": "", "cut": `{"blockSize":51`, "of a later version": `{"blockSize":512,"encrypted":true}`, "odd": `{"blockSize":7}`} {
		rig.Must(t, os.WriteFile(path, []byte(content), 0o600))
		if _, err := pool.Activate(t.Context(), "bad"); err == nil || errors.Is(err, volume.ErrNotFound) {
			t.Errorf("%s: activated with %v", about, err)
		}
		if _, err := pool.Create(t.Context(), volume.Spec{Name: "bad"}); err == nil {
			t.Errorf("%s: made anew", about)
		}
		if volumes, err := pool.List(t.Context()); err != nil || len(volumes) != 1 || volumes[0].Name != "good" {
			t.Errorf("%s: listed %v, %v", about, volumes, err)
		}
		if got := capacity(t, pool, nil); got != 48*rig.MiB {
			t.Errorf("%s: room for %d bytes", about, got)
		}
	}
	rig.Must(t, pool.Delete(t.Context(), "bad"))
}

// Thin volumes may promise more than there is, up to a limit; thick ones never do.
func TestOvercommit(t *testing.T) {
	m := &medium{options: file.Options{Directory: directory(t, "ext4"), Capacity: 64 * rig.MiB, Overcommit: 2}}
	pool, thin := m.open(t), map[string]string{"thin": "true"}
	create := func(name string, size uint64, parameters map[string]string) error {
		_, err := pool.Create(t.Context(), volume.Spec{Name: name, Size: volume.Range{Required: size}, Parameters: parameters})
		return err
	}
	rig.Must(t, create("thin-1", 96*rig.MiB, thin))
	if got := capacity(t, pool, thin); got != 32*rig.MiB {
		t.Errorf("room for %d thin bytes", got)
	}
	if err := create("thin-2", 33*rig.MiB, thin); !errors.Is(err, volume.ErrExhausted) {
		t.Errorf("more than the limit: %v", err)
	}
	rig.Must(t, create("thick", 32*rig.MiB, nil))
	for about, parameters := range map[string]map[string]string{"thin": thin, "thick": nil} {
		if got := capacity(t, pool, parameters); got != 0 {
			t.Errorf("room for %d %s bytes", got, about)
		}
	}
	// A thin one takes only what is written to it.
	info, err := os.Stat(filepath.Join(m.options.Directory, "volumes/thin-1/data"))
	rig.Must(t, err)
	if info.Size() != 96*rig.MiB {
		t.Errorf("%d bytes", info.Size())
	}
}

// Other files on the filesystem take from what the pool can offer, and a pool
// without a capacity leaves a part of it free.
func TestCapacityOfASharedFilesystem(t *testing.T) {
	for about, options := range map[string]file.Options{"configured": {Capacity: 1 << 40}, "not configured": {}} {
		t.Run(about, func(t *testing.T) {
			options.Directory = directory(t, "ext4")
			pool := (&medium{options: options}).open(t)
			before := capacity(t, pool, nil)
			if before == 0 || before > 320*rig.MiB || options.Capacity == 0 && before > 320*rig.MiB*85/100 {
				t.Errorf("room for %d bytes", before)
			}
			rig.Must(t, os.WriteFile(filepath.Join(options.Directory, "other"), make([]byte, 16*rig.MiB), 0o600))
			if after := capacity(t, pool, nil); after > before-16*rig.MiB {
				t.Errorf("room for %d bytes, before 16 MiB were taken %d", after, before)
			}
		})
	}
}

// Who asked may be gone before a copy is made: it is made all the same.
func TestCreateOutlivesItsCaller(t *testing.T) {
	m := &medium{options: file.Options{Directory: directory(t, "ext4"), Capacity: 64 * rig.MiB}}
	pool := m.open(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	spec := volume.Spec{Name: "v", Size: volume.Range{Required: 8 * rig.MiB}}
	if _, err := pool.Create(gone, spec); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for {
		info, err := pool.Create(t.Context(), spec)
		if errors.Is(err, volume.ErrAborted) {
			continue
		}
		if err != nil || info.Size != 8*rig.MiB {
			t.Errorf("got %+v, %v", info, err)
		}
		break
	}
}

// An ext4 that has found errors may refuse all writes and not call itself read-only.
func TestErrorsOfTheFilesystem(t *testing.T) {
	disk := rig.NewDisk(t, 64*rig.MiB)
	m := &medium{options: file.Options{Directory: disk.Mount(t, "ext4"), Capacity: 32 * rig.MiB}}
	pool := m.open(t)
	told := func() []volume.Condition {
		found, _, err := pool.Health(t.Context())
		rig.Must(t, err)
		return found
	}
	if found := told(); len(found) != 0 {
		t.Errorf("without errors is told %v", found)
	}
	// As if the kernel had found one (fs/ext4/sysfs.c). It counts when it gets to it.
	rig.Must(t, os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(disk.Path), "trigger_fs_error"), []byte("a test"), 0o200))
	rig.Eventually(t, func() error {
		if found := told(); len(found) != 1 || found[0].Reason != volume.PoolErrors {
			return fmt.Errorf("after an error is told %v", found)
		}
		return nil
	})
}
