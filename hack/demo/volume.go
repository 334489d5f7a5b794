package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// volumeID is the volumeHandle of the PersistentVolume.
const volumeID = "disk-1"

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

func (d *demo) stage(ctx context.Context) error {
	if err := os.MkdirAll(d.staging(), 0o750); err != nil {
		return err
	}
	d.later(d.unstage)
	d.did("NodeStageVolume volume_id=%s access_mode=%s volume_context={device: %s}", volumeID, accessMode, d.disk.path)
	_, err := d.plugin.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: volumeID, StagingTargetPath: d.staging(), VolumeCapability: capability(), VolumeContext: d.attributes(),
	})
	if err != nil {
		return err
	}
	return d.showRecord()
}

// showRecord shows what the plugin has written down: the text of a link.
func (d *demo) showRecord() error {
	links, err := filepath.Glob(d.path("state", "*", "*"))
	if err != nil || len(links) != 1 {
		return fmt.Errorf("expected one record, found %q (%w)", links, err)
	}
	text, err := os.Readlink(links[0])
	if err != nil {
		return err
	}
	d.saw("recorded: %s", text)
	return nil
}

func (d *demo) unstage(ctx context.Context) error {
	if err := d.revive(ctx); err != nil {
		return err
	}
	d.did("NodeUnstageVolume volume_id=%s", volumeID)
	_, err := d.plugin.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: volumeID, StagingTargetPath: d.staging()})
	if err != nil {
		return fmt.Errorf("unstage: %w", err)
	}
	return nil
}

func (d *demo) publishForWriter(ctx context.Context) error {
	_, err := d.publish(ctx, "pod-1", false)
	return err
}

func (d *demo) publishForReader(ctx context.Context) error {
	node, err := d.publish(ctx, "pod-2", true)
	if err != nil {
		return err
	}
	for _, file := range []string{"loop/backing_file", "ro"} {
		d.did("cat /sys/block/%s/%s", filepath.Base(node), file)
		text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(node), file))
		if err != nil {
			return err
		}
		d.saw("%s", strings.TrimSpace(string(text)))
	}
	return nil
}

// publish returns the device node that the target shows now.
func (d *demo) publish(ctx context.Context, pod string, readOnly bool) (node string, err error) {
	target := d.target(pod)
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return "", err
	}
	d.later(func(ctx context.Context) error { return d.unpublish(ctx, target) })
	d.did("NodePublishVolume volume_id=%s readonly=%t target_path=%s", volumeID, readOnly, target)
	_, err = d.plugin.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: volumeID, StagingTargetPath: d.staging(), TargetPath: target,
		VolumeCapability: capability(), VolumeContext: d.attributes(), Readonly: readOnly,
	})
	if err != nil {
		return "", err
	}
	node, options, err := mountedOn(target)
	if err != nil {
		return "", err
	}
	d.saw("mounted there: %s (%s; ro protects the node, not the disk)", node, options)
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

func (d *demo) unpublish(ctx context.Context, target string) error {
	if err := d.revive(ctx); err != nil {
		return err
	}
	d.did("NodeUnpublishVolume volume_id=%s target_path=%s", volumeID, target)
	_, err := d.plugin.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volumeID, TargetPath: target})
	if err != nil {
		return fmt.Errorf("unpublish: %w", err)
	}
	return nil
}

// staging is the staging folder that kubelet gives to the volume.
func (d *demo) staging() string {
	return d.path("kubelet/plugins/kubernetes.io/csi/volumeDevices/staging", volumeID)
}

// target is the target path that kubelet gives to the volume for a pod.
func (d *demo) target(pod string) string {
	return d.path("kubelet/plugins/kubernetes.io/csi/volumeDevices/publish", volumeID, pod)
}

// attributes are the volumeAttributes of the PersistentVolume.
func (d *demo) attributes() map[string]string { return map[string]string{"device": d.disk.path} }

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: accessMode},
	}
}
