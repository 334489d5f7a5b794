// Package bench measures what the plugin's calls cost, beside peers that do the
// same work with less around it: other servers, programs and plain system calls.
// Each takes its turn in one run, so that the ratios hold on a noisy machine. An
// x- figure says how many times as long as that peer the plugin takes; x-IOPS-file,
// how many times as many operations it makes.
//
// Publish and unpublish have two servers of the same calls as peers: one that only
// says OK, the floor that gRPC over a unix socket sets, and one that makes the
// mount and nothing else. The kubelet directory is on a tmpfs: a file is made and
// removed for each target whoever publishes, and what the journal of a disk takes
// for it is not measured.
package bench

import (
	"cmp"
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
	// next server's turn.
	pairs = 20
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(peerSocket); socket != "" {
		servePeer(socket, os.Getenv(peerKind))
		return
	}
	rig.Main(m)
}

func BenchmarkPublishUnpublish(b *testing.B) {
	kubeletDir := rig.KubeletDirOnTmpfs(b)
	servers := []*rig.Plugin{
		rig.Start(b, rig.Build(b, ""), kubeletDir, rig.StateDir(b)).Plugin,
		startPeer(b, "bare", kubeletDir),
		startPeer(b, "floor", kubeletDir),
	}
	callers := make([]caller, mostCallers)
	for i := range callers {
		disk, id := rig.NewDisk(b, rig.MiB), fmt.Sprintf("vol-%d", i)
		for _, server := range servers {
			callers[i].volumes = append(callers[i].volumes, server.NewVolume(b, id, disk.Path))
		}
		rig.Must(b, callers[i].volumes[0].Stage(b.Context()))
		callers[i].target = callers[i].volumes[0].Target(b, "pod")
	}
	crowd := newCrowd(b)
	fewest := map[int]time.Duration{}
	for _, mounts := range []int{10, 1_000, 10_000} {
		crowd.grow(b, mounts)
		for _, count := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("mounts=%d/callers=%d", mounts, count), func(b *testing.B) {
				took := make([][]time.Duration, len(servers))
				for b.Loop() {
					for i := range servers {
						took[i] = append(took[i], measure(b, callers[:count], i)...)
					}
				}
				plugin, bare, floor := median(took[0]), median(took[1]), median(took[2])
				if mounts == 10 {
					fewest[count] = plugin
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(plugin.Microseconds()), "µs")
				b.ReportMetric(float64(bare.Microseconds()), "µs-bare")
				b.ReportMetric(float64(floor.Microseconds()), "µs-floor")
				b.ReportMetric(float64(plugin)/float64(bare), "x-bare")
				b.ReportMetric(float64(plugin)/float64(floor), "x-floor")
				b.ReportMetric(float64(plugin)/float64(fewest[count]), "x-10-mounts")
			})
		}
	}
}

// caller is a kubelet worker with a volume of its own, as each server knows it.
type caller struct {
	volumes []*rig.Volume
	target  string
}

func call(ctx context.Context, volume *rig.Volume, target string) error {
	return errors.Join(volume.Publish(ctx, target), volume.Unpublish(ctx, target))
}

// measure has all callers call a server at once, and returns how long each pair of
// calls took.
func measure(b *testing.B, callers []caller, server int) []time.Duration {
	b.Helper()
	took := make([]time.Duration, len(callers)*pairs)
	var wait sync.WaitGroup
	for i, caller := range callers {
		wait.Go(func() {
			for n := range pairs {
				start := time.Now()
				if err := call(b.Context(), caller.volumes[server], caller.target); err != nil {
					b.Error(err)
				}
				took[i*pairs+n] = time.Since(start)
			}
		})
	}
	wait.Wait()
	return took
}

func median[T cmp.Ordered](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

// crowd is the other mounts of a node.
type crowd struct {
	dir  string
	size int
}

func newCrowd(b *testing.B) *crowd {
	dir := b.TempDir()
	rig.Must(b, unix.Mount("rawblock-test", dir, "tmpfs", 0, ""))
	b.Cleanup(func() { rig.Must(b, unix.Unmount(dir, unix.MNT_DETACH)) })
	rig.Must(b, unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
	return &crowd{dir: dir}
}

func (c *crowd) grow(b *testing.B, size int) {
	for ; c.size < size; c.size++ {
		place := filepath.Join(c.dir, fmt.Sprint(c.size))
		rig.Must(b, os.WriteFile(place, nil, 0o600))
		rig.Must(b, unix.Mount(place, place, "", unix.MS_BIND, ""))
	}
}

// startPeer starts another server in a process of its own, as the plugin is.
func startPeer(b *testing.B, kind, kubeletDir string) *rig.Plugin {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "peer.sock")
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), peerSocket+"="+socket, peerKind+"="+kind)
	command.Stderr = os.Stderr
	rig.Must(b, command.Start())
	b.Cleanup(func() { errors.Join(command.Process.Kill(), command.Wait()) }) // It says that it was killed.
	peer := rig.Connect(b, socket, kubeletDir)
	_, err := peer.NodeGetCapabilities(b.Context(), &csi.NodeGetCapabilitiesRequest{})
	rig.Must(b, err)
	return peer
}
