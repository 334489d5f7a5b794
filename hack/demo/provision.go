package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// What is asked for, in bytes: the claim, the larger one that is restored from
// the snapshot, and what the first one is to grow to.
const (
	claimSize    = 64 << 20
	restoredSize = 96 << 20
	grownSize    = 128 << 20
)

// volume is a volume of the pool.
type volume struct {
	// name is that of the PersistentVolume: pvc-UUID.
	name string
	// id is its volumeHandle, which the plugin has chosen.
	id string
}

func (d *demo) createClaim(ctx context.Context) (err error) {
	d.claim, err = d.create(ctx, claimSize, nil)
	return err
}

func (d *demo) restore(ctx context.Context) (err error) {
	d.restored, err = d.create(ctx, restoredSize, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: d.snapshot},
	}})
	return err
}

// create makes a volume as external-provisioner does for a claim.
func (d *demo) create(ctx context.Context, size int64, source *csi.VolumeContentSource) (volume, error) {
	name := "pvc-" + uuid()
	asked := fmt.Sprintf("CreateVolume name=%s required_bytes=%d volume_capability={block, %s} parameters={blockSize: %d}", name, size, accessMode, blockSize)
	if snapshot := source.GetSnapshot(); snapshot != nil {
		asked += " snapshot_id=" + snapshot.GetSnapshotId()
	}
	d.did("%s", asked)
	answer, err := d.plugin.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{capability()}, VolumeContentSource: source,
		Parameters: map[string]string{"blockSize": fmt.Sprint(blockSize)},
	})
	if err != nil {
		return volume{}, err
	}
	made := answer.GetVolume()
	d.later(func(ctx context.Context) error { return d.deleteVolume(ctx, made.GetVolumeId()) })
	d.saw("volume_id=%s capacity_bytes=%d topology=%v", made.GetVolumeId(), made.GetCapacityBytes(), made.GetAccessibleTopology()[0].GetSegments())
	if made.GetCapacityBytes() != size {
		return volume{}, fmt.Errorf("it has %d bytes, not %d", made.GetCapacityBytes(), size)
	}
	return volume{name, made.GetVolumeId()}, nil
}

func (d *demo) deleteVolume(ctx context.Context, id string) error {
	if err := d.revive(ctx); err != nil {
		return err
	}
	d.did("DeleteVolume volume_id=%s", id)
	if _, err := d.plugin.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
		return fmt.Errorf("delete the volume: %w", err)
	}
	return nil
}

// lookAtFile shows that the volume is stored as a whole before anybody writes to it.
func (d *demo) lookAtFile(context.Context) error {
	d.did("stat --format='%%s bytes, %%b blocks of %%B' %s", d.file(d.claim))
	info, err := os.Stat(d.file(d.claim))
	if err != nil {
		return err
	}
	// st_blocks counts blocks of 512 bytes (stat(2)).
	stored := info.Sys().(*syscall.Stat_t).Blocks * 512
	d.saw("%d bytes, %d blocks of 512, which are %d bytes", info.Size(), stored/512, stored)
	if info.Size() != claimSize || stored < claimSize {
		return fmt.Errorf("of %d bytes, %d are stored", info.Size(), stored)
	}
	return nil
}

// file is the file of a volume (pkg/pool/file).
func (d *demo) file(v volume) string { return filepath.Join(d.pool(), "volumes", v.name, "data") }

func (d *demo) takeSnapshot(ctx context.Context) error {
	name := "snapshot-" + uuid()
	d.did("CreateSnapshot name=%s source_volume_id=%s", name, d.claim.id)
	answer, err := d.plugin.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: d.claim.id})
	if err != nil {
		return err
	}
	d.later(d.deleteSnapshot)
	made := answer.GetSnapshot()
	d.snapshot = made.GetSnapshotId()
	d.saw("snapshot_id=%s size_bytes=%d ready_to_use=%t", d.snapshot, made.GetSizeBytes(), made.GetReadyToUse())
	return d.showShared()
}

// showShared shows how much of the volume is stored once for it and the snapshot.
func (d *demo) showShared() error {
	d.did("filefrag -v %s", d.file(d.claim))
	file, err := os.Open(d.file(d.claim))
	if err != nil {
		return err
	}
	defer file.Close()
	shared, err := linux.SharedSize(file)
	if err != nil {
		return err
	}
	d.saw("%d KiB are shared: all that pod-1 wrote, so nothing was copied", shared>>10)
	if shared < bulk<<20+blockSize {
		return errors.New("it is less than pod-1 wrote")
	}
	return nil
}

func (d *demo) deleteSnapshot(ctx context.Context) error {
	if err := d.revive(ctx); err != nil {
		return err
	}
	d.did("DeleteSnapshot snapshot_id=%s", d.snapshot)
	if _, err := d.plugin.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: d.snapshot}); err != nil {
		return fmt.Errorf("delete the snapshot: %w", err)
	}
	return nil
}

// expand grows the volume of pod-1 as kubelet does, and has pod-1 use what it got.
func (d *demo) expand(ctx context.Context) error {
	if err := d.inside(ctx, d.writer, readSize, fmt.Sprint(claimSize)); err != nil {
		return err
	}
	target := d.target(d.claim, d.writer.name)
	d.did("NodeExpandVolume volume_id=%s required_bytes=%d volume_path=%s", d.claim.id, grownSize, target)
	answer, err := d.plugin.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: d.claim.id, VolumePath: target, StagingTargetPath: d.staging(d.claim), VolumeCapability: capability(),
		CapacityRange: &csi.CapacityRange{RequiredBytes: grownSize},
	})
	if err != nil {
		return err
	}
	d.saw("capacity_bytes=%d", answer.GetCapacityBytes())
	if err := d.inside(ctx, d.writer, readSize, fmt.Sprint(grownSize)); err != nil {
		return err
	}
	last := grownSize/blockSize - 1
	if err := d.inside(ctx, d.writer, write(farther, last), ""); err != nil {
		return err
	}
	return d.wantInFile(d.claim, last, farther)
}

// wantEmpty checks that nothing is left of any volume or snapshot.
func (d *demo) wantEmpty(context.Context) error {
	d.did("ls -R %s/{volumes,snapshots,work}", d.pool())
	left := glob(filepath.Join(d.pool(), "*", "*"))
	d.saw("%d entries", len(left))
	if len(left) > 0 {
		return fmt.Errorf("left in the pool: %s", strings.Join(left, ", "))
	}
	return nil
}

// uuid returns what Kubernetes' API server gives to an object as its UID.
func uuid() string { return strings.TrimSpace(content("/proc/sys/kernel/random/uuid")) }
