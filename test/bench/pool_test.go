package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// filePool is the plugin with one pool of files, in a process of its own.
type filePool struct {
	*rig.Plugin
	dir string
}

func newFilePool(b *testing.B, dir string) *filePool {
	b.Helper()
	pools := fmt.Sprintf("[{name: files, file: {directory: %s}}]", dir)
	process := rig.StartWithPools(b, pools, rig.Build(b, ""), rig.KubeletDirOnTmpfs(b), rig.StateDir(b))
	return &filePool{process.Plugin, dir}
}

// create makes a thick volume of a size in bytes and returns its ID.
func (p *filePool) create(ctx context.Context, name string, size int64) (id string, err error) {
	answer, err := p.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{(&rig.Volume{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}).Capability()},
	})
	return answer.GetVolume().GetVolumeId(), err
}

func (p *filePool) delete(ctx context.Context, id string) error {
	_, err := p.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

// newVolume makes a volume that goes with the benchmark.
func (p *filePool) newVolume(b *testing.B, name string, size int64) *rig.Volume {
	b.Helper()
	id, err := p.create(b.Context(), name, size)
	rig.Must(b, err)
	volume := p.NewVolume(b, id, "")
	volume.Context = nil
	atEnd(b, volume.Unstage)
	return volume
}

// atEnd calls the plugin when the benchmark has ended, and its context with it.
func atEnd(b *testing.B, call func(context.Context) error) {
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.Context()), time.Minute)
		defer cancel()
		rig.Must(b, call(ctx))
	})
}

// file is the file of a volume (pkg/pool/file).
func (p *filePool) file(name string) string { return filepath.Join(p.dir, "volumes", name, "data") }

// filesystemInMemory makes a filesystem of a kind and a size in bytes on a disk in
// memory, and returns where it is mounted. On it, what the disk of this machine
// takes, and who else uses it, is not measured.
func filesystemInMemory(b *testing.B, kind string, size int64) string {
	b.Helper()
	disk, dir := &rig.Disk{Backing: filepath.Join(rig.StateDir(b), "rawblock-test-disk")}, b.TempDir()
	rig.Must(b, os.WriteFile(disk.Backing, nil, 0o600))
	rig.Must(b, os.Truncate(disk.Backing, size))
	disk.Plug(b, 512)
	b.Cleanup(func() { disk.Pull(b) })
	if output, err := exec.CommandContext(b.Context(), "mkfs."+kind, "-q", disk.Path).CombinedOutput(); err != nil {
		b.Fatalf("mkfs.%s: %v\n%s", kind, err, output)
	}
	rig.Must(b, unix.Mount(disk.Path, dir, kind, 0, ""))
	b.Cleanup(func() { rig.UnmountAll(b, dir) })
	return dir
}

// inTurn has each of several ways to do the same thing do it a few times, then the
// next, and returns how long each takes: the median.
func inTurn(b *testing.B, ways ...func() error) []time.Duration {
	b.Helper()
	const each = 5
	took := make([][]time.Duration, len(ways))
	for b.Loop() {
		for i, way := range ways {
			for range each {
				start := time.Now()
				err := way()
				took[i] = append(took[i], time.Since(start))
				rig.Must(b, err)
			}
		}
	}
	medians := make([]time.Duration, len(ways))
	for i := range took {
		medians[i] = median(took[i])
	}
	return medians
}

// reportBeside reports how long the plugin takes, and its peers by their names,
// and how many times as long as each of those.
func reportBeside(b *testing.B, plugin time.Duration, peers map[string]time.Duration) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(plugin.Microseconds()), "µs")
	for name, took := range peers {
		b.ReportMetric(float64(took.Microseconds()), "µs-"+name)
		b.ReportMetric(float64(plugin)/float64(took), "x-"+name)
	}
}
