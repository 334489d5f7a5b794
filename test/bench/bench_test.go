// Package bench measures what a publish and unpublish cost, beside a server of
// the same calls that only says OK: the floor that gRPC over a unix socket sets.
// Both answer in turn in one run, so that the ratio holds on a noisy machine.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const (
	mostCallers = 32
	// pairs is how often each caller publishes and unpublishes before it is the
	// other server's turn.
	pairs = 50
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(floorSocket); socket != "" {
		serveFloor(socket)
		return
	}
	rig.Main(m)
}

func BenchmarkPublishUnpublish(b *testing.B) {
	kubeletDir := rig.KubeletDir(b)
	plugin := rig.Start(b, rig.Build(b, ""), kubeletDir, rig.StateDir(b))
	floor := startFloor(b, kubeletDir)
	callers := make([]caller, mostCallers)
	for i := range callers {
		disk, id := rig.NewDisk(b, rig.MiB), fmt.Sprintf("vol-%d", i)
		real := plugin.NewVolume(b, id, disk.Path)
		rig.Must(b, real.Stage(b.Context()))
		callers[i] = caller{plugin: real, floor: floor.NewVolume(b, id, disk.Path), target: real.Target(b, "pod")}
	}
	crowd := newCrowd(b)
	fewest := map[int]time.Duration{}
	for _, mounts := range []int{10, 1_000, 10_000} {
		crowd.grow(b, mounts)
		for _, count := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("mounts=%d/callers=%d", mounts, count), func(b *testing.B) {
				var real, least []time.Duration
				for b.Loop() {
					real = append(real, measure(b, callers[:count], caller.callPlugin)...)
					least = append(least, measure(b, callers[:count], caller.callFloor)...)
				}
				p50 := median(real)
				if mounts == 10 {
					fewest[count] = p50
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(micros(p50), "µs-p50")
				b.ReportMetric(micros(median(least)), "µs-p50-floor")
				b.ReportMetric(float64(p50)/float64(median(least)), "x-floor")
				b.ReportMetric(float64(p50)/float64(fewest[count]), "x-10-mounts")
			})
		}
	}
}

// caller is a kubelet worker with a volume of its own.
type caller struct {
	plugin, floor *rig.Volume
	target        string
}

func (c caller) callPlugin(ctx context.Context) error { return call(ctx, c.plugin, c.target) }
func (c caller) callFloor(ctx context.Context) error  { return call(ctx, c.floor, c.target) }

func call(ctx context.Context, volume *rig.Volume, target string) error {
	return errors.Join(volume.Publish(ctx, target), volume.Unpublish(ctx, target))
}

// measure has all callers call at once, and returns how long each pair of calls took.
func measure(b *testing.B, callers []caller, call func(caller, context.Context) error) []time.Duration {
	b.Helper()
	took := make([]time.Duration, len(callers)*pairs)
	var wait sync.WaitGroup
	for i, caller := range callers {
		wait.Go(func() {
			for n := range pairs {
				start := time.Now()
				if err := call(caller, b.Context()); err != nil {
					b.Error(err)
				}
				took[i*pairs+n] = time.Since(start)
			}
		})
	}
	wait.Wait()
	return took
}

func median(values []time.Duration) time.Duration {
	slices.Sort(values)
	return values[len(values)/2]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// crowd is the other mounts of a node.
type crowd struct {
	folder string
	size   int
}

func newCrowd(b *testing.B) *crowd {
	folder := b.TempDir()
	rig.Must(b, unix.Mount("rawblock-test", folder, "tmpfs", 0, ""))
	b.Cleanup(func() { rig.Must(b, unix.Unmount(folder, unix.MNT_DETACH)) })
	rig.Must(b, unix.Mount("", folder, "", unix.MS_PRIVATE, ""))
	return &crowd{folder: folder}
}

func (c *crowd) grow(b *testing.B, size int) {
	for ; c.size < size; c.size++ {
		place := filepath.Join(c.folder, fmt.Sprint(c.size))
		rig.Must(b, os.WriteFile(place, nil, 0o600))
		rig.Must(b, unix.Mount(place, place, "", unix.MS_BIND, ""))
	}
}

// startFloor starts the server that only says OK, in a process of its own like the plugin.
func startFloor(b *testing.B, kubeletDir string) *rig.Plugin {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "floor.sock")
	command := exec.Command(os.Args[0]) //nolint:gosec,noctx // This very binary; it is killed below.
	command.Env = append(os.Environ(), floorSocket+"="+socket)
	command.Stderr = os.Stderr
	rig.Must(b, command.Start())
	b.Cleanup(func() { errors.Join(command.Process.Kill(), command.Wait()) }) //nolint:errcheck // It says that it was killed.
	floor := rig.Connect(b, socket, kubeletDir)
	_, err := floor.NodeGetCapabilities(b.Context(), &csi.NodeGetCapabilitiesRequest{})
	rig.Must(b, err)
	return floor
}
