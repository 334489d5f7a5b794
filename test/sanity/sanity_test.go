// Package sanity runs csi-sanity, the CSI project's own conformance suite,
// against the real plugin on its socket, with real loop devices.
package sanity

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// The Identity and Node groups. The plugin has no controller yet, so the
// controller's groups are left out.
func TestSanity(t *testing.T) {
	plugin := rig.NewPlugin(t)
	config := sanity.NewTestConfig()
	config.Address = plugin.Socket
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(announceAdministrator))
	config.ControllerAddress = serveAdministrator(t, plugin.IdentityClient)
	config.TestVolumeAccessType = "block"
	config.TestVolumeSize = diskSize
	config.TestVolumeExpandSize = diskSize
	config.TargetPath = filepath.Join(plugin.KubeletDir, "publish")
	config.StagingPath = filepath.Join(plugin.KubeletDir, "staging")

	context := sanity.GinkgoTest(&config)
	defer context.Finalize()
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	suite.FocusStrings = []string{`Identity Service`, `Node Service`}
	reporter.NoColor = true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
}

// announceAdministrator has csi-sanity believe that the plugin has a controller.
// Without one it leaves out the tests of a volume's whole life on a node.
func announceAdministrator(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := call(ctx, method, req, reply, conn, options...)
	if capabilities, ok := reply.(*csi.GetPluginCapabilitiesResponse); ok {
		capabilities.Capabilities = append(capabilities.Capabilities, &csi.PluginCapability{
			Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}},
		})
	}
	return err
}
