package encryption_test

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const plaintext = "what the pod has written, which nobody else may read"

func TestLife(t *testing.T) {
	for kind, newPool := range pools {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t, newPool(t))
			ctx := rig.Context(t)
			v := n.create(t, request(name))
			if got := v.Context; len(got) != 1 || got[driver.EncryptionParameter] != "luks2" {
				t.Errorf("its attributes are %v", got)
			}
			target := v.use(t, "pod-1")
			if got := sizeOf(t, target); got != size {
				t.Errorf("promised %d bytes, the pod has %d", size, got)
			}
			if got := strings.Count(rig.ReadAt(t, target, 64, 0), "\x00"); got == 64 {
				t.Error("a new volume reads as zeros: is it encrypted?")
			}
			write(t, target, plaintext, 0)
			write(t, target, plaintext, size-int64(len(plaintext)))
			if bytes.Contains(v.content(t), []byte(plaintext)[:16]) {
				t.Error("the raw device has what the pod has written")
			}

			// All again, also by a plugin that has started anew.
			before := v.content(t)
			for range 2 {
				rig.Must(t, v.stage(ctx))
				rig.Must(t, v.publish(ctx, target))
				n.restart(t)
			}
			other := v.Target(t, "pod-2")
			rig.Must(t, v.publish(ctx, other))
			wantData(t, other, plaintext, 0)
			v.wantUnchanged(t, before)
			n.wantListed(t, v)
			stats, err := n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: v.ID, VolumePath: target})
			if err != nil || stats.GetUsage()[0].GetTotal() != size {
				t.Errorf("stats: %v, %v", stats, err)
			}

			// What hot attach is given is what the pod has.
			publisher, err := publish.New(n.StateDir, sysfs)
			rig.Must(t, err)
			staged, _, err := publisher.OpenStaged(v.ID)
			rig.Must(t, err)
			if mapping, _ := v.mapping(); staged.Size() != size || strings.TrimSpace(readFile(t, "/sys/dev/block/"+staged.Number().String()+"/dm/name")) != mapping {
				t.Errorf("staged as %s of %d bytes, want the mapping", staged, staged.Size())
			}
			staged.Close()

			v.drop(t, target, other)
			for range 2 {
				rig.Must(t, v.unstage(ctx))
			}
			wantCode(t, v.publish(ctx, target), codes.FailedPrecondition, "not open on this node", "staged")
			target = v.use(t, "pod-1")
			wantData(t, target, plaintext, 0)
			wantData(t, target, plaintext, size-int64(len(plaintext)))
			v.drop(t, target)
			_, err = n.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.ID})
			rig.Must(t, err)
		})
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	rig.Must(t, err)
	return string(content)
}

// wantListed fails the test unless the volume is listed as it was promised.
func (n *node) wantListed(t *testing.T, v *vol) {
	t.Helper()
	listed, err := n.ListVolumes(rig.Context(t), &csi.ListVolumesRequest{})
	rig.Must(t, err)
	for _, entry := range listed.GetEntries() {
		if got := entry.GetVolume(); got.GetVolumeId() == v.ID {
			if got.GetCapacityBytes() != size || got.GetVolumeContext()[driver.EncryptionParameter] != "luks2" {
				t.Errorf("listed as %v", got)
			}
			return
		}
	}
	t.Errorf("%s is not listed: %v", v.ID, listed)
}

// A volume that is deleted while it is staged, which no kubelet does, is closed first.
func TestDeleteWhileStaged(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	v := n.create(t, request(name))
	rig.Must(t, v.stage(rig.Context(t)))
	_, err := n.DeleteVolume(rig.Context(t), &csi.DeleteVolumeRequest{VolumeId: v.ID})
	rig.Must(t, err)
	if name, open := v.mapping(); open {
		t.Errorf("%s is still open", name)
	}
}

// All of the capacity that is offered can be had, and no more.
func TestCapacity(t *testing.T) {
	pool, _ := newPartitions(t, 0)
	n := newNode(t, pool)
	plain, err := n.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{})
	rig.Must(t, err)
	offered, err := n.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{Parameters: encrypted()})
	rig.Must(t, err)
	if got := plain.GetMaximumVolumeSize().GetValue() - offered.GetMaximumVolumeSize().GetValue(); got != header || offered.GetAvailableCapacity() != plain.GetAvailableCapacity()-header {
		t.Errorf("of %v, %v is offered for encrypted volumes", plain, offered)
	}
	req := request(name)
	req.CapacityRange = &csi.CapacityRange{RequiredBytes: offered.GetMaximumVolumeSize().GetValue() + rig.MiB}
	_, err = n.CreateVolume(rig.Context(t), req)
	wantCode(t, err, codes.OutOfRange)
	req.CapacityRange = &csi.CapacityRange{RequiredBytes: offered.GetMaximumVolumeSize().GetValue()}
	target := n.create(t, req).use(t, "pod")
	if got := sizeOf(t, target); int64(got) != req.GetCapacityRange().GetRequiredBytes() {
		t.Errorf("the pod has %d bytes", got)
	}
}

// A volume grows while its pod uses it, without the key.
func TestGrowth(t *testing.T) {
	for kind, newPool := range pools {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t, newPool(t))
			v := n.create(t, request(name))
			target := v.use(t, "pod")
			write(t, target, plaintext, size-int64(len(plaintext)))
			held, err := os.Open(target)
			rig.Must(t, err)
			defer held.Close()
			for range 2 {
				grown, err := n.NodeExpandVolume(rig.Context(t), &csi.NodeExpandVolumeRequest{
					VolumeId: v.ID, VolumePath: target, StagingTargetPath: v.Staging, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * size, LimitBytes: 2 * size},
				})
				if err != nil || grown.GetCapacityBytes() != 2*size || sizeOf(t, target) != 2*size {
					t.Fatalf("grown to %v (%v), the pod has %d bytes", grown, err, sizeOf(t, target))
				}
			}
			wantData(t, target, plaintext, size-int64(len(plaintext)))
			write(t, target, plaintext, 2*size-int64(len(plaintext)))
			_, err = n.NodeExpandVolume(rig.Context(t), &csi.NodeExpandVolumeRequest{
				VolumeId: v.ID, VolumePath: target, CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 40},
			})
			if err == nil {
				t.Error("it grew to 1 TiB")
			}
			held.Close()
			v.drop(t, target)

			// Also where it grows between two pods.
			expander := n.pool.(interface {
				Expand(ctx context.Context, name string, size volume.Range) (uint64, error)
			})
			_, err = expander.Expand(rig.Context(t), name, volume.Range{Required: 3*size + header})
			rig.Must(t, err)
			target = v.use(t, "pod")
			if got := sizeOf(t, target); got != 3*size {
				t.Errorf("the pod has %d bytes", got)
			}
			wantData(t, target, plaintext, 2*size-int64(len(plaintext)))
			v.drop(t, target)
		})
	}
}

// A pool that grew while the plugin was killed before the mapping did: the call that
// is repeated completes it, and so does staging.
func TestGrowthIsCompleted(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	for i, complete := range []func() error{
		func() error {
			_, err := n.NodeExpandVolume(rig.Context(t), &csi.NodeExpandVolumeRequest{
				VolumeId: v.ID, VolumePath: target, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * size},
			})
			return err
		},
		func() error { return v.stage(rig.Context(t)) },
	} {
		want := uint64(i+2) * size
		_, err := n.ControllerExpandVolume(rig.Context(t), &csi.ControllerExpandVolumeRequest{
			VolumeId: v.ID, CapacityRange: &csi.CapacityRange{RequiredBytes: int64(want)}, VolumeCapability: block(),
		})
		rig.Must(t, err)
		// Killed on the way, cryptsetup leaves it suspended.
		mapping, _ := v.mapping()
		run(t, "", "dmsetup", "suspend", mapping)
		rig.Must(t, complete())
		if got := sizeOf(t, target); got != want {
			t.Errorf("the pod has %d bytes, want %d", got, want)
		}
		write(t, target, plaintext, int64(want)-int64(len(plaintext)))
	}
}

// Copies have the key, and the header, of what they were made from, and are used
// beside it.
func TestCopies(t *testing.T) {
	n := newNode(t, newFiles(t, "xfs"))
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	held, err := os.OpenFile(target, os.O_WRONLY, 0)
	rig.Must(t, err)
	defer held.Close()
	_, err = held.WriteAt([]byte(plaintext), 0) // The kernel holds it back.
	rig.Must(t, err)
	snapshot, err := n.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snapshot", SourceVolumeId: v.ID})
	rig.Must(t, err)
	if got := snapshot.GetSnapshot().GetSizeBytes(); got != size {
		t.Errorf("the snapshot has %d bytes", got)
	}
	t.Cleanup(func() {
		n.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshot.GetSnapshot().GetSnapshotId()})
	})
	_, err = held.WriteAt([]byte("X"), 0)
	rig.Must(t, err)
	restore := request(second)
	restore.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot.GetSnapshot().GetSnapshotId()},
	}}
	clone := request("clone")
	clone.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.ID},
	}}
	clone.CapacityRange = &csi.CapacityRange{RequiredBytes: 2 * size}
	for _, req := range []*csi.CreateVolumeRequest{restore, clone} {
		plain := request(req.GetName())
		plain.VolumeContentSource, plain.Parameters = req.GetVolumeContentSource(), nil
		_, err := n.CreateVolume(ctx, plain)
		wantCode(t, err, codes.InvalidArgument, `encryption "luks2", not ""`)

		made := n.create(t, req)
		copied := made.use(t, "pod")
		if got := sizeOf(t, copied); int64(got) != req.GetCapacityRange().GetRequiredBytes() {
			t.Errorf("%s has %d bytes", req.GetName(), got)
		}
		first := "X" // The clone is of now.
		if req == restore {
			first = plaintext[:1]
		}
		wantData(t, copied, first+plaintext[1:], 0)
		write(t, copied, "Y", 0)
		made.drop(t, copied)
		wantData(t, made.use(t, "pod"), "Y"+plaintext[1:], 0)
	}
	wantData(t, target, "X"+plaintext[1:], 0)
	rig.Must(t, held.Close())
}

// A volume of a new class is a new key, and an old one is not a plain volume.
func TestNeverPlain(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	plain := request(name)
	plain.Parameters = nil
	_, err := n.CreateVolume(ctx, plain)
	if err == nil {
		t.Error("the encrypted volume was given as a plain one")
	}
	// An edited PersistentVolume.
	target := v.Target(t, "pod")
	attributes := v.Context
	v.Context = nil
	wantCode(t, v.stage(ctx), codes.InvalidArgument, "not encrypted")
	v.secrets = nil
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "volumeAttributes.encryption")
	wantCode(t, v.publish(ctx, target), codes.FailedPrecondition, "volumeAttributes.encryption")
	v.Context, v.secrets = attributes, map[string]string{driver.KeySecret: n.key}
	rig.Must(t, v.stage(ctx))
	v.Context = nil
	wantCode(t, v.publish(ctx, target), codes.FailedPrecondition, "volumeAttributes.encryption")
	v.Context = attributes
	rig.Must(t, v.publish(ctx, target))
	v.drop(t, target)
}
