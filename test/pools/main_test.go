// Package pools tests provisioned volumes from the outside: the real plugin on its
// socket, called as external-provisioner, csi-snapshotter and kubelet do.
package pools

import (
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

const (
	size = 8 * rig.MiB
	name = "pvc-0a1b2c3d-1111-2222-3333-444455556666"
	data = "what the pod has written"
)

// createRequest is what external-provisioner sends for a claim with volumeMode: Block.
func createRequest(name string, size int64) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name:               name,
		CapacityRange:      &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{block(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)},
		Parameters:         map[string]string{"pool": "pool", "csi.storage.k8s.io/pvc/name": "data"},
		AccessibilityRequirements: &csi.TopologyRequirement{
			Requisite: []*csi.Topology{here()}, Preferred: []*csi.Topology{here()},
		},
	}
}

func here() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{"topology.rawblock.dev/node": rig.NodeID}}
}

func block(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id},
	}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id},
	}}
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

// adopt makes a disk one of the pool.
func adopt(t *testing.T, path string) {
	t.Helper()
	pool, err := disk.New(t.Context(), "pool", disk.Options{Match: disk.Selector{Paths: []string{path}}}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	defer pool.Close()
	wiped := func() bool {
		capacity, err := pool.Capacity(t.Context(), nil)
		rig.Must(t, err)
		return capacity.Available > 0
	}
	eventually(t, wiped, func() string { return "the disk is not wiped" })
}

// eventually waits for what happens in the background.
func eventually(t *testing.T, done func() bool, about func() string) {
	t.Helper()
	for range 600 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error(about())
}
