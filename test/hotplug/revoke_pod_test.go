package hotplug

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// The volume of a pod that asked for an attachment, and is deleted, cannot be unpublished
// while the target holds it. Only then is it taken from there. That a pod asked is written
// into the record: there is no container runtime here.
func TestVMRevokeForAPod(t *testing.T) {
	const uid = "0b1f3c5e-pod"
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	device := newMapping(t, "rawblock-test", disk.Path)
	node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
	ctx := rig.Context(t)
	opened, err := blockdev.Open(device.Path, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	defer opened.Close()
	target := publish.Target{VolumeID: "volume", Path: filepath.Join(rig.KubeletDir(t), uid)}
	rig.Must(t, node.publisher.Stage("volume", opened, volume.SingleNodeMultiWriter))
	rig.Must(t, node.publisher.Admit(ctx, "volume", opened, publish.Publication{Target: target.Path, Mode: volume.SingleNodeMultiWriter}))
	rig.Must(t, node.publisher.Publish(ctx, opened, target, false))
	request := container.request(device.Disk, "/dev/xvdb")
	request.Device, request.Volume, request.Shared = "", "volume", true
	attached, err := node.Attach(ctx, request)
	rig.Must(t, err)
	path := filepath.Join(node.stateDir, "attachments", attached.ID+".json")
	text, err := os.ReadFile(path)
	rig.Must(t, err)
	rig.Must(t, os.WriteFile(path, []byte(strings.Replace(string(text), `"shared":true`, `"owner":"`+uid+`"`, 1)), 0o600))
	release, write := container.holdAndWrite(t, "descriptor", "/dev/xvdb")

	_, err = node.Revoke(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrPrecondition, "delete that pod")
	if got := write("still"); got != "written" {
		t.Errorf("the holder writes: %s", got)
	}
	wantErrorOf(t, node.Withdraw(ctx, "volume", target.Path), volume.ErrInUse, "(holder)")
	_, err = node.Detach(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrPrecondition, "delete that pod")
	got, err := node.Revoke(ctx, attached.ID)
	if err != nil || got.State != hotplug.Detached {
		t.Errorf("the attachment is %+v, %v", got, err)
	}
	if got := write("later"); !strings.Contains(got, "input/output error") {
		t.Errorf("the holder writes: %s", got)
	}
	rig.Must(t, node.Withdraw(ctx, "volume", target.Path))
	rig.Must(t, node.publisher.Unpublish(ctx, target))
	rig.Must(t, node.CheckReleased(ctx, "volume"))
	rig.Must(t, node.publisher.Unstage("volume"))
	release()
}
