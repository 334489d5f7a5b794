// Package bench_test measures what each kind of pool costs, on disks of one kind in
// one machine. The machine is emulated, so times mean nothing: the figures are there
// to be compared with each other.
package bench_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) {
	machine.OnlyInside()
	rig.Main(m)
}

const (
	diskSize   = 1 << 30
	volumeSize = 64 * rig.MiB
)

var (
	sysfs = blockdev.NewSysfs("/sys")
	quiet = klog.NewContext(context.Background(), logr.Discard())
)

// kinds are the kinds of pools, each on a disk of its own, by what a user chooses.
var kinds = []struct {
	name string
	open func(b *testing.B, path string) (pool driver.Pool, parameters map[string]string)
}{
	{"files, thick", func(b *testing.B, path string) (driver.Pool, map[string]string) { return files(b, path), nil }},
	{"files, thin", func(b *testing.B, path string) (driver.Pool, map[string]string) {
		return files(b, path), map[string]string{"thin": "true"}
	}},
	{"partitions", func(b *testing.B, path string) (driver.Pool, map[string]string) {
		pool, err := disk.New(quiet, "bench", disk.Options{Match: disk.Selector{Paths: []string{path}}}, sysfs)
		rig.Must(b, err)
		b.Cleanup(pool.Close)
		return pool, nil
	}},
	{"LVM, thick", func(b *testing.B, path string) (driver.Pool, map[string]string) {
		run(b, "vgcreate", "--yes", "bench-thick", path)
		return logical(b, lvm.Options{VolumeGroup: "bench-thick"}), nil
	}},
	{"LVM, thin", func(b *testing.B, path string) (driver.Pool, map[string]string) {
		run(b, "vgcreate", "--yes", "bench-thin", path)
		run(b, "lvcreate", "--yes", "--type", "thin-pool", "--extents", "80%FREE", "--name", "thin", "bench-thin")
		run(b, "lvchange", "--errorwhenfull", "y", "bench-thin/thin")
		return lvm.ThinPool{Pool: logical(b, lvm.Options{VolumeGroup: "bench-thin", ThinPool: "thin"})}, nil
	}},
}

func files(b *testing.B, path string) driver.Pool {
	b.Helper()
	dir := (&rig.Disk{Path: path, Backing: path}).Mount(b, "xfs")
	pool, err := file.New(quiet, "bench", file.Options{Directory: dir, Overcommit: 1}, sysfs)
	rig.Must(b, err)
	b.Cleanup(pool.Close)
	return pool
}

func logical(b *testing.B, options lvm.Options) *lvm.Pool {
	b.Helper()
	b.Cleanup(func() { run(b, "vgremove", "--force", "--force", "--yes", options.VolumeGroup) })
	pool, err := lvm.New(quiet, "bench", options, program.New(""), sysfs)
	rig.Must(b, err)
	b.Cleanup(pool.Close)
	return pool
}

func run(b *testing.B, args ...string) {
	b.Helper()
	if output, err := exec.Command("lvm", args...).CombinedOutput(); err != nil {
		b.Fatalf("lvm %s: %v\n%s", args[0], err, output)
	}
}

// BenchmarkCalls shows what a claim waits for, and what a pod does, with each pool.
func BenchmarkCalls(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind.name, func(b *testing.B) {
			medium := machine.Add(b, machine.Disk{Size: diskSize})
			pool, parameters := kind.open(b, medium.Path)
			waitForRoom(b, pool, parameters)
			measureCalls(b, pool, parameters)
		})
	}
}

// BenchmarkIO shows I/O on a volume of each pool beside that on a bare disk. All are
// measured in turn, so that whatever else the machine does meets all of them.
func BenchmarkIO(b *testing.B) {
	bare := machine.Add(b, machine.Disk{Size: diskSize})
	subjects := []*subject{newSubject(b, "bare disk", bare.Path)}
	for number, kind := range kinds {
		medium := machine.Add(b, machine.Disk{Size: diskSize})
		pool, parameters := kind.open(b, medium.Path)
		waitForRoom(b, pool, parameters)
		name := fmt.Sprintf("data-%d", number)
		_, err := pool.Create(quiet, spec(name, parameters))
		rig.Must(b, err)
		device, err := pool.Activate(quiet, name)
		rig.Must(b, err)
		subjects = append(subjects, newSubject(b, kind.name, device.Node().Name()))
		b.Cleanup(func() {
			device.Close()
			rig.Must(b, pool.Deactivate(quiet, name))
			rig.Must(b, pool.Delete(quiet, name))
		})
	}
	for _, size := range []int64{4096, rig.MiB} {
		b.Run(fmt.Sprintf("read %d KiB", size>>10), func(b *testing.B) { compare(b, subjects, size, (*os.File).ReadAt) })
		b.Run(fmt.Sprintf("write %d KiB", size>>10), func(b *testing.B) { compare(b, subjects, size, (*os.File).WriteAt) })
	}
	for _, one := range subjects {
		one.file.Close()
	}
}

func spec(name string, parameters map[string]string) volume.Spec {
	return volume.Spec{Name: name, Size: volume.Range{Required: volumeSize}, Parameters: parameters}
}

// waitForRoom waits until the pool has wiped what it is going to give away.
func waitForRoom(b *testing.B, pool driver.Pool, parameters map[string]string) {
	b.Helper()
	for range 1200 {
		if capacity, err := pool.Capacity(quiet, parameters); err == nil && capacity.MaxVolume >= 4*volumeSize {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.Fatal("the pool has no room")
}

// measureCalls measures what a claim waits for, and what a pod does.
func measureCalls(b *testing.B, pool driver.Pool, parameters map[string]string) {
	b.Run("create", func(b *testing.B) {
		for i := range b.N {
			name := fmt.Sprintf("volume-%d", i)
			_, err := pool.Create(quiet, spec(name, parameters))
			rig.Must(b, err)
			b.StopTimer()
			rig.Must(b, pool.Delete(quiet, name))
			waitForRoom(b, pool, parameters)
			b.StartTimer()
		}
	})
	b.Run("stage", func(b *testing.B) {
		_, err := pool.Create(quiet, spec("staged", parameters))
		rig.Must(b, err)
		for b.Loop() {
			device, err := pool.Activate(quiet, "staged")
			rig.Must(b, err)
			device.Close()
			b.StopTimer()
			rig.Must(b, pool.Deactivate(quiet, "staged"))
			b.StartTimer()
		}
		rig.Must(b, pool.Delete(quiet, "staged"))
	})
}

// subject is a device that is compared with others.
type subject struct {
	name   string
	file   *os.File
	buffer []byte
	// times are how long each round took.
	times []time.Duration
}

// newSubject opens a device past the page cache, and writes its first volumeSize bytes.
func newSubject(b *testing.B, name, path string) *subject {
	b.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	rig.Must(b, err)
	buffer, err := unix.Mmap(-1, 0, rig.MiB, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	rig.Must(b, err)
	b.Cleanup(func() { unix.Munmap(buffer) })
	rand.Read(buffer) //nolint:errcheck // It never fails (crypto/rand).
	for at := int64(0); at < volumeSize; at += rig.MiB {
		_, err := file.WriteAt(buffer, at)
		rig.Must(b, err)
	}
	return &subject{name: name, file: file, buffer: buffer}
}

const (
	rounds = 40
	// requests are how many make a round.
	requests = 25
)

// compare makes rounds of requests of a size, one request at a time, with each subject
// in turn, and reports the medians as multiples of the first subject's.
func compare(b *testing.B, subjects []*subject, size int64, request func(*os.File, []byte, int64) (int, error)) {
	for _, one := range subjects {
		one.times = nil
	}
	for round := range rounds {
		for _, one := range subjects {
			start := time.Now()
			for i := range requests {
				at := int64(round*requests+i) * 7919 * size % volumeSize / size * size
				_, err := request(one.file, one.buffer[:size], at)
				rig.Must(b, err)
			}
			one.times = append(one.times, time.Since(start))
		}
	}
	for _, one := range subjects {
		slices.Sort(one.times)
		ratio := float64(one.times[rounds/2]) / float64(subjects[0].times[rounds/2])
		b.ReportMetric(ratio, strings.NewReplacer(" ", "-", ",", "").Replace(one.name)+"/bare")
	}
	b.ReportMetric(0, "ns/op") // It is the machine's.
}
