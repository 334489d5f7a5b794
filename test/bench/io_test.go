package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const (
	// ioSize is the size in bytes of the volume that is read and written.
	ioSize = 256 * rig.MiB
	// ioTime is how long each job lasts, as fio takes it: many short rounds in turn
	// are less disturbed by what else the machine does than a few long ones.
	ioTime = "300ms"
)

// The names of the two jobs of a run of fio.
const (
	throughDevice = "device"
	onFile        = "file"
)

// pattern is what fio does.
type pattern struct {
	name      string
	readWrite string
	blockSize string
	depth     int
}

// Reading and writing what is published beside the file that it is made of, both
// with direct I/O. In each round one comes right after the other, so that they
// meet the same noise; the ratio is the median of the rounds' ratios. The
// filesystem is in memory: the slower a disk is, the less is left of what the way
// through the loop device takes.
func BenchmarkIO(b *testing.B) {
	rig.RequireProgram(b, "fio")
	pool := newFilePool(b, filepath.Join(filesystemInMemory(b, "xfs", 1<<30), "pool"))
	volume := pool.newVolume(b, "volume", ioSize)
	target := volume.Target(b, "pod")
	rig.Must(b, volume.Stage(b.Context()))
	rig.Must(b, volume.Publish(b.Context(), target))
	atEnd(b, func(ctx context.Context) error { return volume.Unpublish(ctx, target) })
	fill(b, target)
	paths := map[string]string{throughDevice: target, onFile: pool.file("volume")}
	for _, pattern := range []pattern{
		{"random-read-4KiB-depth-1", "randread", "4k", 1},
		{"random-read-4KiB-depth-16", "randread", "4k", 16},
		{"random-write-4KiB-depth-1", "randwrite", "4k", 1},
		{"random-write-4KiB-depth-16", "randwrite", "4k", 16},
		{"read-1MiB", "read", "1M", 1},
		{"write-1MiB", "write", "1M", 1},
	} {
		b.Run(pattern.name, func(b *testing.B) { pattern.measure(b, paths) })
	}
}

func (p pattern) measure(b *testing.B, paths map[string]string) {
	var device, file, ratio []float64
	order := []string{throughDevice, onFile}
	for b.Loop() {
		rates := p.run(b, order, paths)
		device, file = append(device, rates[throughDevice]), append(file, rates[onFile])
		ratio = append(ratio, rates[throughDevice]/rates[onFile])
		slices.Reverse(order)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(device), "IOPS")
	b.ReportMetric(median(file), "IOPS-file")
	b.ReportMetric(median(ratio), "x-IOPS-file")
}

// run has fio go through the jobs in an order, and returns the I/O operations per
// second of each.
func (p pattern) run(b *testing.B, order []string, paths map[string]string) map[string]float64 {
	b.Helper()
	args := []string{
		"--output-format=json", "--eta=never", "--disk_util=0", "--thread",
		"--ioengine=libaio", "--direct=1", "--time_based", "--runtime=" + ioTime, fmt.Sprintf("--size=%d", ioSize), "--stonewall",
		"--rw=" + p.readWrite, "--bs=" + p.blockSize, fmt.Sprintf("--iodepth=%d", p.depth),
	}
	for _, job := range order {
		args = append(args, "--name="+job, "--filename="+paths[job])
	}
	output, err := exec.CommandContext(b.Context(), "fio", args...).Output()
	if err != nil {
		b.Fatalf("fio: %v\n%s", err, output)
	}
	rates, err := parseRates(output)
	rig.Must(b, err)
	return rates
}

// parseRates reads what fio prints as JSON: the I/O operations per second of each
// job.
func parseRates(output []byte) (map[string]float64, error) {
	var result struct {
		Jobs []struct {
			Name  string `json:"jobname"`
			Error int
			Read  struct{ IOPS float64 }
			Write struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(output, &result); err != nil {
		return nil, fmt.Errorf("output of fio: %w:\n%s", err, output)
	}
	rates := map[string]float64{}
	for _, job := range result.Jobs {
		rate := job.Read.IOPS + job.Write.IOPS
		if job.Error != 0 || rate == 0 {
			return nil, fmt.Errorf("job %s of fio made %g I/O operations a second, and ended with error %d", job.Name, rate, job.Error)
		}
		rates[job.Name] = rate
	}
	return rates, nil
}

func TestParseRates(t *testing.T) {
	got, err := parseRates([]byte(`{"fio version": "fio-3.33", "jobs": [
		{"jobname": "device", "error": 0, "read": {"iops": 7854.291417, "runtime": 501}, "write": {"iops": 0.000000}},
		{"jobname": "file", "error": 0, "read": {"iops": 0.000000}, "write": {"iops": 2.5}}]}`))
	rig.Must(t, err)
	if diff := cmp.Diff(map[string]float64{throughDevice: 7854.291417, onFile: 2.5}, got); diff != "" {
		t.Error(diff)
	}
	for _, output := range []string{
		"", "fio: engine libaio not loadable",
		`{"jobs": [{"jobname": "device", "error": 5, "read": {"iops": 1}}]}`,
		`{"jobs": [{"jobname": "device", "error": 0, "read": {"iops": 0}}]}`,
	} {
		if rates, err := parseRates([]byte(output)); err == nil {
			t.Errorf("%q: got %v", output, rates)
		}
	}
}

// fill writes to all of a volume: what was never written to is not read from the
// medium, and the first write to it takes longer.
func fill(b *testing.B, path string) {
	b.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	rig.Must(b, err)
	defer file.Close()
	for range ioSize / rig.MiB {
		_, err := file.Write(bytes.Repeat([]byte{0xa5}, rig.MiB))
		rig.Must(b, err)
	}
	rig.Must(b, file.Sync())
}
