package encryption_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// ours are the crash points of pkg/luks: those of the rest of a volume's life,
// test/pools has.
var ours = []string{
	"header marked as unfinished", "rest of the header written", "header written", "mapping opened", "mapping grown", "mapping closed",
}

// The plugin is killed after each step that concerns the encryption, and its callers
// repeat the call: the volume is as if nothing had happened.
func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	binary := rig.Build(t, "crashpoints")
	trace := filepath.Join(t.TempDir(), "trace")
	newKilled(t, binary).live(t, "RAWBLOCK_CRASH_TRACE="+trace)
	points := strings.Split(strings.TrimSpace(readFile(t, trace)), "\n")
	for _, point := range ours {
		at := slices.Index(points, point)
		if at < 0 {
			t.Errorf("%q was not reached: %v", point, points)
			continue
		}
		t.Run(point, func(t *testing.T) {
			if !newKilled(t, binary).live(t, fmt.Sprintf("RAWBLOCK_CRASH_AT=%d", at+1)) {
				t.Error("the plugin was not killed")
			}
		})
	}
}

// killed is a node whose plugin is a process of its own.
type killed struct {
	binary, pools, kubeletDir, stateDir string
	key                                 string
	plugin                              *rig.Process
}

func newKilled(t *testing.T, binary string) *killed {
	dir := filepath.Join(rig.Filesystem(t, "ext4", 128*rig.MiB), "pool")
	return &killed{
		binary: binary, pools: fmt.Sprintf("[{name: pool, file: {directory: %s}}]", dir),
		kubeletDir: rig.KubeletDir(t), stateDir: rig.StateDir(t), key: newKey(t),
	}
}

// live makes the calls of a volume's life, and reports whether the plugin was killed
// on the way; it is then started again, and the call is repeated.
func (k *killed) live(t *testing.T, environment string) (wasKilled bool) {
	t.Helper()
	k.plugin = rig.StartWithPools(t, k.pools, k.binary, k.kubeletDir, k.stateDir, environment)
	v := k.plugin.Provisioned(t, "pool/"+name+"@"+rig.NodeID)
	v.Context = encrypted()
	target := v.Target(t, "pod")
	stage := func(ctx context.Context) error {
		_, err := k.plugin.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
			VolumeId: v.ID, StagingTargetPath: v.Staging, VolumeCapability: v.Capability(), VolumeContext: v.Context,
			Secrets: map[string]string{driver.KeySecret: k.key},
		})
		return err
	}
	publish := func(ctx context.Context) error {
		_, err := k.plugin.NodePublishVolume(ctx, v.PublishRequest(target, false))
		return err
	}
	unpublish := func(ctx context.Context) error {
		_, err := k.plugin.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.ID, TargetPath: target})
		return err
	}
	unstage := func(ctx context.Context) error {
		_, err := k.plugin.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.ID, StagingTargetPath: v.Staging})
		return err
	}
	for i, call := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := k.plugin.CreateVolume(ctx, request(name)); return err },
		stage, publish,
		func(context.Context) error { write(t, target, plaintext, 0); return nil },
		func(ctx context.Context) error {
			_, err := k.plugin.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
				VolumeId: v.ID, VolumePath: target, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * size},
			})
			return err
		},
		unpublish, unstage, stage, publish,
		func(context.Context) error {
			wantData(t, target, plaintext, 0)
			if got := sizeOf(t, target); got != 2*size {
				t.Errorf("the pod has %d bytes", got)
			}
			return nil
		},
		unpublish, unstage,
		func(ctx context.Context) error {
			_, err := k.plugin.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.ID})
			return err
		},
	} {
		err := call(rig.Context(t))
		if status.Code(err) == codes.Unavailable && !wasKilled {
			wasKilled = true
			k.plugin.Kill()
			k.plugin = rig.StartWithPools(t, k.pools, k.binary, k.kubeletDir, k.stateDir)
			err = call(rig.Context(t))
		}
		if err != nil {
			t.Fatalf("call %d: %v\n%s", i, err, k.plugin.Kill())
		}
	}
	k.plugin.Kill()
	if left, err := filepath.Glob("/dev/mapper/rawblock*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	entries, err := os.ReadDir(k.stateDir)
	rig.Must(t, err)
	for _, entry := range entries {
		if entry.IsDir() {
			t.Errorf("a record is left: %s", entry.Name())
		}
	}
	return wasKilled
}
