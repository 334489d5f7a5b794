// Package sanity runs csi-sanity, the CSI project's own conformance suite,
// against the real plugin on its socket, with real loop devices: all of it, for
// each kind of pool.
package sanity

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

const volumeSize = 8 * rig.MiB

func TestSanity(t *testing.T) {
	rig.RequireRoot(t)
	gomega.RegisterFailHandler(ginkgo.Fail)
	for name, pool := range map[string]driver.Pool{
		"pool of files, on a filesystem with reflink":    newFilePool(t, "xfs"),
		"pool of files, on a filesystem without reflink": newFilePool(t, "ext4"),
	} {
		describe(t, name, pool)
	}
	ginkgo.ReportAfterSuite("what was skipped", tellSkipped)
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.NoColor = true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
}

// describe has csi-sanity run against a plugin with one pool.
func describe(t *testing.T, name string, pool driver.Pool) {
	plugin := rig.NewPlugin(t, map[string]driver.Pool{"pool": pool})
	config := sanity.NewTestConfig()
	config.Address = plugin.Socket
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(measure))
	config.TestVolumeAccessType = "block"
	config.TestVolumeSize = volumeSize
	config.TestVolumeExpandSize = 2 * volumeSize
	config.TargetPath = filepath.Join(plugin.KubeletDir, "publish")
	config.StagingPath = filepath.Join(plugin.KubeletDir, "staging")
	ginkgo.Describe(name, func() {
		context := sanity.GinkgoTest(&config)
		t.Cleanup(context.Finalize)
	})
}

// measure has a message that was received look like one that was also sent, down
// to the size that is cached in it: csi-sanity 5.6.0 compares the topology of a
// snapshot with one that it has sent by all fields, also internal ones.
func measure(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := call(ctx, method, req, reply, conn, options...)
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
