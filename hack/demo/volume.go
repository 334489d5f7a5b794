package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// accessMode is what ReadWriteOnce becomes: pods of one node share the volume.
const accessMode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER

func (d *demo) askForNode(ctx context.Context) error {
	d.did("NodeGetInfo")
	info, err := d.plugin.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return err
	}
	d.saw("node_id=%s topology=%v", info.GetNodeId(), info.GetAccessibleTopology().GetSegments())
	if info.GetNodeId() != nodeID {
		return fmt.Errorf("the plugin is on %q, not %q", info.GetNodeId(), nodeID)
	}
	return nil
}

func (d *demo) stageClaim(ctx context.Context) error { return d.stage(ctx, d.claim) }

func (d *demo) stage(ctx context.Context, v volume) error {
	if err := os.MkdirAll(d.staging(v), 0o750); err != nil {
		return err
	}
	d.later(func(ctx context.Context) error { return d.unstage(ctx, v) })
	d.did("NodeStageVolume volume_id=%s access_mode=%s", v.id, accessMode)
	_, err := d.plugin.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.id, StagingTargetPath: d.staging(v), VolumeCapability: capability(),
	})
	if err != nil {
		return err
	}
	return d.showLoop(v)
}

// showLoop shows the loop device over the file of a volume, as sysfs tells of it.
func (d *demo) showLoop(v volume) error {
	found := loops(func(backing string) bool { return backing == d.file(v) })
	if len(found) != 1 {
		return fmt.Errorf("expected one loop device over %s, found %q", d.file(v), found)
	}
	return d.showFacts(found[0], "size", "queue/logical_block_size", "loop/backing_file", "loop/dio")
}

// showFacts shows files of a block device in sysfs.
func (d *demo) showFacts(device string, files ...string) error {
	dir := filepath.Join("/sys/block", device)
	d.did("cd %s; grep . %s", dir, strings.Join(files, " "))
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		d.saw("%s:%s", file, strings.TrimSpace(string(text)))
	}
	return nil
}

func (d *demo) unstage(ctx context.Context, v volume) error {
	if err := d.revive(ctx); err != nil {
		return err
	}
	d.did("NodeUnstageVolume volume_id=%s", v.id)
	_, err := d.plugin.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: d.staging(v)})
	if err != nil {
		return fmt.Errorf("unstage: %w", err)
	}
	return nil
}

func (d *demo) publishForWriter(ctx context.Context) error {
	_, err := d.publish(ctx, d.claim, "pod-1", false)
	return err
}

func (d *demo) publishForReader(ctx context.Context) error {
	if err := d.stage(ctx, d.restored); err != nil {
		return err
	}
	node, err := d.publish(ctx, d.restored, "pod-2", true)
	if err != nil {
		return err
	}
	return d.showFacts(filepath.Base(node), "loop/backing_file", "ro")
}

// publish returns the device node that the target shows now.
func (d *demo) publish(ctx context.Context, v volume, pod string, readOnly bool) (node string, err error) {
	target := d.target(v, pod)
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return "", err
	}
	d.later(func(ctx context.Context) error { return d.unpublish(ctx, v, target) })
	d.did("NodePublishVolume volume_id=%s readonly=%t target_path=%s", v.id, readOnly, target)
	_, err = d.plugin.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: v.id, StagingTargetPath: d.staging(v), TargetPath: target, VolumeCapability: capability(), Readonly: readOnly,
	})
	if err != nil {
		return "", err
	}
	node, options, err := mountedOn(target)
	if err != nil {
		return "", err
	}
	d.saw("mounted there: %s (%s; ro protects the node, not the volume)", node, options)
	return node, nil
}

// mountedOn tells which device node is mounted on the target, and how.
func mountedOn(target string) (node, options string, err error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(table)) {
		// The fields are described in proc_pid_mountinfo(5).
		if fields := strings.Fields(line); fields[4] == target {
			return "/dev" + fields[3], fields[5], nil
		}
	}
	return "", "", fmt.Errorf("nothing is mounted on %s", target)
}

func (d *demo) unpublish(ctx context.Context, v volume, target string) error {
	if err := d.revive(ctx); err != nil {
		return err
	}
	d.did("NodeUnpublishVolume volume_id=%s target_path=%s", v.id, target)
	_, err := d.plugin.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: target})
	if err != nil {
		return fmt.Errorf("unpublish: %w", err)
	}
	return nil
}

// staging is the staging directory that kubelet gives to the volume.
func (d *demo) staging(v volume) string {
	return d.path("kubelet/plugins/kubernetes.io/csi/volumeDevices/staging", v.name)
}

// target is the target path that kubelet gives to the volume for a pod.
func (d *demo) target(v volume, pod string) string {
	return d.path("kubelet/plugins/kubernetes.io/csi/volumeDevices/publish", v.name, pod)
}

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: accessMode},
	}
}
