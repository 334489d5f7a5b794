//go:build crash

package hotplug

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// revoking is an attachment that is held and then revoked, by the plugin as a process.
type revoking struct {
	*life
	disk    *machine.Plugged
	device  mapping
	id      string
	release func()
	write   func(string) string
}

// newRevoking attaches a mapping, and has a program of the container hold it.
func newRevoking(t *testing.T, binary string, environment ...string) (*revoking, *rig.Process, *admin.Client) {
	t.Helper()
	r := &revoking{disk: machine.Add(t, machine.Disk{Size: 4 * rig.MiB})}
	r.device = newMapping(t, "rawblock-test", r.disk.Path)
	r.life = &life{rig.KubeletDir(t), rig.StateDir(t), startContainer(t, oci.Config{CgroupV2: true}), r.device.Disk, nil}
	plugin, client := r.start(t, binary, environment...)
	attached, err := client.Attach(rig.Context(t), r.container.request(r.device.Disk, "/dev/xvdb"))
	rig.Must(t, err)
	r.id = attached.ID
	r.release, r.write = r.container.holdAndWrite(t, "descriptor", "/dev/xvdb")
	if got := r.write("first"); got != "written" {
		t.Fatalf("the holder writes: %s", got)
	}
	if held, err := client.Detach(rig.Context(t), r.id); err == nil || held.State != hotplug.Held {
		t.Fatalf("the attachment is %+v, %v", held, err)
	}
	return r, plugin, client
}

// The plugin is killed after each step of a revocation. Once its intent is recorded, the
// next one completes it: no step leaves the device with its holder, or suspended.
func TestVMRevokeKilledBetweenAnyTwoSteps(t *testing.T) {
	binary := rig.Build(t, "crashpoints")
	first, points := revokePoints(t, binary)
	for at := first; at < len(points); at++ {
		t.Run(fmt.Sprintf("%d %s", at+1, points[at]), func(t *testing.T) {
			r, plugin, client := newRevoking(t, binary, fmt.Sprintf("RAWBLOCK_CRASH_AT=%d", at+1))
			if _, err := client.Revoke(rig.Context(t), r.id); err == nil {
				t.Fatalf("the plugin was not killed: %s", plugin.Kill())
			}
			plugin.Kill()
			plugin, client = r.start(t, binary)
			rig.Eventually(t, func() error {
				list, err := client.List(rig.Context(t))
				if err == nil && len(list) > 0 {
					err = fmt.Errorf("there are %+v", list)
				}
				return err
			})
			if got := r.write("later"); !strings.Contains(got, "input/output error") {
				t.Errorf("the holder writes: %s", got)
			}
			if got := r.device.table(t); got != "0 2048 error" {
				t.Errorf("the table is %q", got)
			}
			if got := rig.ReadAt(t, r.disk.Path, 5, 0); got != "first" {
				t.Errorf("on the disk stands %q", got)
			}
			plugin.Kill()
			r.release()
		})
	}
}

// revokePoints returns the steps of an undisturbed life, and which of them is the first
// of the revocation.
func revokePoints(t *testing.T, binary string) (first int, points []string) {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	t.Run("undisturbed", func(t *testing.T) {
		r, plugin, client := newRevoking(t, binary, "RAWBLOCK_CRASH_TRACE="+trace)
		before, err := os.ReadFile(trace)
		rig.Must(t, err)
		first = strings.Count(string(before), "\n")
		_, err = client.Revoke(rig.Context(t), r.id)
		rig.Must(t, err)
		plugin.Kill()
		r.release()
	})
	content, err := os.ReadFile(trace)
	rig.Must(t, err)
	points = strings.Split(strings.TrimSpace(string(content)), "\n")
	for _, point := range []string{"attachment recorded as Detaching", "error target loaded", "device suspended", "device revoked"} {
		if !slices.Contains(points[first:], point) {
			t.Fatalf("the points of the revocation are %q, without %q", points[first:], point)
		}
	}
	return first, points
}

// A table that fails in part, such as that of a volume with a lost disk, is replaced
// like any other. It is not handed out, so it became like that while it was attached.
func TestVMRevokeOfWhatFailsInPart(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	device := newMapping(t, "rawblock-test", disk.Path)
	node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
	ctx := rig.Context(t)
	attached, err := node.Attach(ctx, container.request(device.Disk, "/dev/xvdb"))
	rig.Must(t, err)
	release, write := container.holdAndWrite(t, "descriptor", "/dev/xvdb")
	dmsetup(t, "suspend", device.name)
	dmsetup(t, "reload", device.name, "--table", "0 1024 linear "+disk.Path+" 0\n1024 1024 error")
	dmsetup(t, "resume", device.name)
	if got := write("first"); got != "written" {
		t.Fatalf("the holder writes: %s", got)
	}
	_, err = node.Revoke(ctx, attached.ID)
	rig.Must(t, err)
	if got := write("later"); !strings.Contains(got, "input/output error") {
		t.Errorf("the holder writes: %s", got)
	}
	release()
}

// A mount is not a process: whose it is is not known.
func TestVMRevokeOfAMount(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: 64 * rig.MiB})
	device := newMappingOf(t, "rawblock-test", disk.Path, 64*rig.MiB)
	node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
	ctx := rig.Context(t)
	attached, err := node.Attach(ctx, container.request(device.Disk, "/dev/xvdb"))
	rig.Must(t, err)
	mounted := device.Mount(t, "ext4")
	held, err := node.Revoke(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrPrecondition, "mounted at "+mounted)
	if held.State != hotplug.Held {
		t.Errorf("the attachment is %+v", held)
	}
	if got := device.table(t); !strings.Contains(got, "linear") {
		t.Errorf("the table is %q", got)
	}
	rig.UnmountAll(t, mounted)
	_, err = node.Revoke(ctx, attached.ID)
	rig.Must(t, err)
}

// What was revoked is neither staged nor published for the next one, until it was made
// anew.
func TestVMRevokedIsNotHandedOut(t *testing.T) {
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	device := newMapping(t, "rawblock-test", disk.Path)
	node, container := newNode(t), startContainer(t, oci.Config{CgroupV2: true})
	ctx := rig.Context(t)
	rig.Must(t, node.stage(t, "volume", device.Disk))
	request := container.request(device.Disk, "/dev/xvdb")
	request.Device, request.Volume = "", "volume"
	attached, err := node.Attach(ctx, request)
	rig.Must(t, err)
	release, _ := container.holdAndWrite(t, "descriptor", "/dev/xvdb")
	_, err = node.Revoke(ctx, attached.ID)
	rig.Must(t, err)

	opened, err := blockdev.Open(device.Path, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	const says = "has an error target"
	wantErrorOf(t, node.publisher.Admit(ctx, "volume", opened, publish.Publication{Target: "/target", Mode: volume.SingleNodeWriter}), volume.ErrPrecondition, says)
	wantErrorOf(t, node.stage(t, "volume", device.Disk), volume.ErrPrecondition, says)
	_, err = node.Attach(ctx, request)
	wantErrorOf(t, err, volume.ErrPrecondition, says)
	rig.Must(t, node.publisher.Unstage("volume"))
	wantErrorOf(t, node.stage(t, "volume", device.Disk), volume.ErrPrecondition, says)

	release()
	opened.Close()
	node.Close()
	dmsetup(t, "remove", "--retry", device.name)
	dmsetup(t, "create", device.name, "--table", "0 2048 linear "+disk.Path+" 0")
	rig.Must(t, node.stage(t, "volume", device.Disk))
	rig.Must(t, node.publisher.Unstage("volume"))
}
