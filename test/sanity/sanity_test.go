// Package sanity runs csi-sanity, the CSI project's own conformance suite,
// against the real plugin on its socket, with real loop devices: all of it, for
// each kind of pool; those of logical volumes in a guest machine (test/vm).
package sanity

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) { rig.Main(m) }

// What csi-sanity asks for, in bytes: of most pools, and of one whose volumes are
// whole disks, which do not grow.
const (
	volumeSize = 8 * rig.MiB
	diskSize   = 40 * rig.MiB
	wholeSize  = diskSize - 3*rig.MiB // Less the claim and both tables.
)

func TestSanity(t *testing.T) {
	rig.RequireRoot(t)
	gomega.RegisterFailHandler(ginkgo.Fail)
	if machine.Inside() {
		describe(t, "pool of thick logical volumes", newLVMPool(t, ""), volumeSize, 2*volumeSize)
		describe(t, "pool of thin logical volumes", newLVMPool(t, "tp0"), volumeSize, 2*volumeSize)
	} else {
		describePools(t)
	}
	ginkgo.ReportAfterSuite("what was skipped", tellSkipped)
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.NoColor = true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
}

// describePools has the pools tested that need no guest machine.
func describePools(t *testing.T) {
	describe(t, "pool of files, on a filesystem with reflink", newFilePool(t, "xfs"), volumeSize, 2*volumeSize)
	describe(t, "pool of files, on a filesystem without reflink", newFilePool(t, "ext4"), volumeSize, 2*volumeSize)
	describe(t, "pool of disks, of partitions", newDiskPool(t, disk.LayoutPartition, 512*rig.MiB), volumeSize, 2*volumeSize)
	whole := newDiskPool(t, disk.LayoutWhole, diskSize, diskSize, diskSize, diskSize, diskSize, diskSize, diskSize, diskSize)
	describe(t, "pool of disks, of whole disks", whole, wholeSize, wholeSize)
}

// describe has csi-sanity run against a plugin with one pool.
func describe(t *testing.T, name string, pool driver.Pool, size, expanded int64) {
	plugin := rig.NewPlugin(t, map[string]driver.Pool{"pool": pool})
	config := sanity.NewTestConfig()
	config.Address = plugin.Socket
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(callAsSidecarsDo))
	config.TestVolumeAccessType = "block"
	config.TestVolumeSize = size
	config.TestVolumeExpandSize = expanded
	config.TargetPath = filepath.Join(plugin.KubeletDir, "publish")
	config.StagingPath = filepath.Join(plugin.KubeletDir, "staging")
	ginkgo.Describe(name, func() {
		context := sanity.GinkgoTest(&config)
		t.Cleanup(context.Finalize)
	})
}

// callAsSidecarsDo repeats a call that found no space, as csi-resizer does: what
// another spec has deleted may still be wiped.
//
// And it has a message that was received look like one that was also sent, down to
// the size that is cached in it: csi-sanity 5.6.0 compares the topology of a
// snapshot with one that it has sent by all fields, also internal ones.
func callAsSidecarsDo(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := call(ctx, method, req, reply, conn, options...)
	for range 100 {
		if status.Code(err) != codes.ResourceExhausted {
			break
		}
		time.Sleep(50 * time.Millisecond)
		err = call(ctx, method, req, reply, conn, options...)
	}
	if message, ok := reply.(proto.Message); ok {
		proto.Size(message)
	}
	return err
}

// tellSkipped says which specs did not run, and why.
func tellSkipped(report ginkgo.Report) {
	for _, spec := range report.SpecReports {
		switch spec.State.String() {
		case "skipped":
			fmt.Printf("SKIPPED %s: %s\n", spec.FullText(), strings.TrimSpace(spec.Failure.Message))
		case "pending":
			fmt.Printf("SKIPPED %s: csi-sanity itself has it pending\n", spec.FullText())
		}
	}
}

func newFilePool(t *testing.T, filesystem string) driver.Pool {
	t.Helper()
	options := file.Options{Directory: rig.Filesystem(t, filesystem, 512*rig.MiB)}
	pool, err := file.New(t.Context(), "pool", options, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// newDiskPool makes a pool of disks of the given sizes, once they are wiped.
func newDiskPool(t *testing.T, layout string, sizes ...int64) driver.Pool {
	t.Helper()
	options := disk.Options{Layout: layout}
	for _, size := range sizes {
		options.Match.Paths = append(options.Match.Paths, rig.NewDisk(t, size).Path)
	}
	pool, err := disk.New(t.Context(), "pool", options, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	for wiping := true; wiping; time.Sleep(10 * time.Millisecond) {
		capacity, err := pool.Capacity(t.Context(), nil)
		rig.Must(t, err)
		wiping = capacity.Available < uint64(len(sizes))*uint64(sizes[0]-3*rig.MiB)
	}
	return pool
}
