package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Making and removing a volume beside fallocate and unlink alone, and beside the
// same with what keeps a power cut from undoing them.
func BenchmarkCreateDelete(b *testing.B) {
	for _, kind := range []string{"ext4", "xfs"} {
		b.Run("on="+kind, func(b *testing.B) {
			dir := rig.Filesystem(b, kind, 4<<30)
			pool := newFilePool(b, filepath.Join(dir, "pool"))
			for _, size := range []int64{64 * rig.MiB, 1024 * rig.MiB} {
				b.Run(fmt.Sprintf("size=%dMiB", size/rig.MiB), func(b *testing.B) {
					took := inTurn(b,
						func() error { return pool.createAndDelete(b.Context(), size) },
						func() error { return allocateAndUnlink(dir, size, true) },
						func() error { return allocateAndUnlink(dir, size, false) })
					reportBeside(b, took[0], map[string]time.Duration{"synced": took[1], "bare": took[2]})
				})
			}
		})
	}
}

func (p *filePool) createAndDelete(ctx context.Context, size int64) error {
	id, err := p.create(ctx, "volume", size)
	if err != nil {
		return err
	}
	return p.delete(ctx, id)
}

// allocateAndUnlink makes a file of a size with all of its space, and removes it.
func allocateAndUnlink(path string, size int64, synced bool) error {
	file, err := os.Create(filepath.Join(path, "file"))
	if err != nil {
		return err
	}
	defer file.Close()
	sync := func(file *os.File) error { return file.Sync() }
	if !synced {
		sync = func(*os.File) error { return nil }
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Fallocate(int(file.Fd()), 0, 0, size); err != nil {
		return err
	}
	return errors.Join(sync(file), sync(dir), os.Remove(file.Name()), sync(dir))
}

// Making a volume where there are many: the space that the others may still take
// is counted each time.
func BenchmarkCreateAmong(b *testing.B) {
	for _, kind := range []string{"ext4", "xfs"} {
		b.Run("on="+kind, func(b *testing.B) {
			pool := newFilePool(b, filepath.Join(filesystemInMemory(b, kind, 2<<30), "pool"))
			var fewest time.Duration
			for _, volumes := range []int{10, 1_000} {
				pool.grow(b, volumes)
				b.Run(fmt.Sprintf("volumes=%d", volumes), func(b *testing.B) {
					took := pool.measureCreate(b)
					if volumes == 10 {
						fewest = took
					}
					reportBeside(b, took, map[string]time.Duration{"10-volumes": fewest})
				})
			}
		})
	}
}

// smallSize is the size in bytes of a volume of which there are many.
const smallSize = rig.MiB

// grow copies a volume's directory until there are so many. Made one by one, they
// would take longer than all that is measured.
func (p *filePool) grow(b *testing.B, count int) {
	b.Helper()
	_, err := p.create(b.Context(), "volume-0", smallSize)
	rig.Must(b, err)
	record, err := os.ReadFile(filepath.Join(p.dir, "volumes", "volume-0", "record.json"))
	rig.Must(b, err)
	for i := range count {
		dir := filepath.Join(p.dir, "volumes", fmt.Sprintf("volume-%d", i))
		if err := os.Mkdir(dir, 0o700); errors.Is(err, os.ErrExist) {
			continue
		}
		rig.Must(b, os.WriteFile(filepath.Join(dir, "record.json"), record, 0o600))
		data, err := os.Create(filepath.Join(dir, "data"))
		rig.Must(b, err)
		rig.Must(b, errors.Join(unix.Fallocate(int(data.Fd()), 0, 0, smallSize), data.Close()))
	}
	answer, err := p.ListVolumes(b.Context(), &csi.ListVolumesRequest{})
	rig.Must(b, err)
	if got := len(answer.GetEntries()); got != count {
		b.Fatalf("the pool has %d volumes, not %d", got, count)
	}
}

// measureCreate returns how long it takes to make a volume.
func (p *filePool) measureCreate(b *testing.B) time.Duration {
	b.Helper()
	const each = 5
	var took []time.Duration
	for b.Loop() {
		for range each {
			start := time.Now()
			id, err := p.create(b.Context(), "one-more", smallSize)
			took = append(took, time.Since(start))
			rig.Must(b, errors.Join(err, p.delete(b.Context(), id)))
		}
	}
	return median(took)
}

// Attaching and detaching a volume beside losetup, which does the part of it that
// it can, with the same file.
func BenchmarkStageUnstage(b *testing.B) {
	pool := newFilePool(b, filepath.Join(filesystemInMemory(b, "ext4", 1<<30), "pool"))
	volume := pool.newVolume(b, "volume", 64*rig.MiB)
	took := inTurn(b,
		func() error { return errors.Join(volume.Stage(b.Context()), volume.Unstage(b.Context())) },
		func() error { return losetup(b.Context(), pool.file("volume")) })
	reportBeside(b, took[0], map[string]time.Duration{"losetup": took[1]})
}

// losetup attaches a file and detaches it.
func losetup(ctx context.Context, file string) error {
	output, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", file).Output()
	if err != nil {
		return err
	}
	return exec.CommandContext(ctx, "losetup", "--detach", strings.TrimSpace(string(output))).Run()
}
