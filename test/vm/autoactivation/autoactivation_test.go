// Package autoactivation_test plays a tenant who writes into his volume what the host
// activates by itself, in a guest with udev and systemd, and the rules of LVM and MD.
package autoactivation_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/luks"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) {
	machine.OnlyInside()
	// As a host is installed, and not as the other tests have it.
	if err := os.WriteFile("/etc/mdadm.conf", []byte("AUTO +all\n"), 0o644); err != nil {
		panic(err)
	}
	rig.Main(m)
}

const (
	size = 32 * rig.MiB
	// guide is what errors and findings name for how to keep the host from it.
	guide = "docs/guides/autoactivation.md"
)

var sysfs = blockdev.NewSysfs("/sys")

// hostFile returns the path of a file of deploy/host.
func hostFile(name string) string { return filepath.Join(os.Getenv("RAWBLOCK_HOST_FILES"), name) }

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(rig.Context(t), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// install puts a file of deploy/host into its place until the test ends.
func install(t *testing.T, name, place string) {
	t.Helper()
	before, err := os.ReadFile(place)
	existed := err == nil
	data, err := os.ReadFile(hostFile(name))
	rig.Must(t, err)
	rig.Must(t, os.WriteFile(place, data, 0o644))
	t.Cleanup(func() {
		if existed {
			rig.Must(t, os.WriteFile(place, before, 0o644))
		} else {
			rig.Must(t, os.Remove(place))
		}
		exec.Command("udevadm", "control", "--reload").Run()
	})
	run(t, "udevadm", "control", "--reload")
}

func installRule(t *testing.T) {
	t.Helper()
	install(t, "62-rawblock-csi.rules", "/etc/udev/rules.d/62-rawblock-csi.rules")
}

// node is a node with one pool of each kind.
type node struct {
	*rig.Plugin
	doctor *doctor.Doctor
}

var kinds = []string{"file", "disk", "lvm", "encrypted"}

func newNode(t *testing.T) *node {
	t.Helper()
	ctx := t.Context()
	media := machine.Add(t, machine.Disk{Size: 6 * size})
	run(t, "lvm", "vgcreate", "--yes", "pool-group", media.Path)
	t.Cleanup(func() { exec.Command("lvm", "vgremove", "--force", "--force", "--yes", "pool-group").Run() })
	dir := t.TempDir()
	files, err := file.New(ctx, "file", file.Options{Directory: dir, Capacity: 8 * size}, sysfs)
	rig.Must(t, err)
	t.Cleanup(files.Close)
	disks, err := disk.New(ctx, "disk", disk.Options{Match: disk.Selector{Paths: []string{machine.Add(t, machine.Disk{Size: 4 * size}).Path}}}, sysfs)
	rig.Must(t, err)
	t.Cleanup(disks.Close)
	volumes, err := lvm.New(ctx, "lvm", lvm.Options{VolumeGroup: "pool-group"}, program.New(""), sysfs)
	rig.Must(t, err)
	t.Cleanup(volumes.Close)
	pools := map[string]driver.Pool{"file": files, "disk": disks, "lvm": volumes}
	var stateDir, kubeletDir string
	var publisher *publish.Publisher
	n := &node{Plugin: rig.NewPluginWith(t, func(options *driver.Options) {
		options.Pools = pools
		publisher, kubeletDir = options.Publisher, options.KubeletDir
		options.Encryption = luks.New(program.New(""), sysfs, luks.KDF{Kind: "pbkdf2", Iterations: 1000})
		options.Keys = luks.KeyDirectory(t.TempDir())
	})}
	stateDir = n.StateDir
	rig.Must(t, os.MkdirAll(filepath.Join(kubeletDir, "pods"), 0o755))
	sources := []inspect.Source{
		{Name: "file", Kind: "file", Directory: dir, Volumes: files},
		{Name: "disk", Kind: "disk", Volumes: disks},
		{Name: "lvm", Kind: "lvm", Volumes: volumes},
	}
	inspector := inspect.New(inspect.Options{Node: rig.NodeID, Driver: "csi.rawblock.dev", StateDir: stateDir, KubeletDir: kubeletDir, Sysfs: sysfs, Pools: sources})
	n.doctor = doctor.New(doctor.Options{Inspector: inspector, Publisher: publisher, Inflight: &inflight.Names{}})
	return n
}

// claim makes a volume and publishes it to a pod, and returns its device.
func (n *node) claim(t *testing.T, kind, name string) (v *rig.Volume, target string, number linux.DeviceNumber) {
	t.Helper()
	ctx := rig.Context(t)
	parameters := map[string]string{"pool": kind}
	if kind == "encrypted" {
		parameters = map[string]string{"pool": "file", driver.EncryptionParameter: "luks2"}
	}
	request := &csi.CreateVolumeRequest{
		Name: name, Parameters: parameters, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{(&rig.Volume{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}).Capability()},
	}
	var made *csi.CreateVolumeResponse
	eventually(t, "volume "+name, func() (err error) {
		made, err = n.CreateVolume(ctx, request) // The disk is wiped first.
		return err
	})
	v = n.Provisioned(t, made.GetVolume().GetVolumeId())
	v.Context = made.GetVolume().GetVolumeContext()
	if kind == "encrypted" {
		v.Secrets = map[string]string{driver.KeySecret: strings.Repeat("ab", 32)}
	}
	rig.Must(t, v.Stage(ctx))
	target = v.Target(t, "pod")
	rig.Must(t, v.Publish(ctx, target))
	return v, target, published(t, target)
}

// published returns the number of the device at a target.
func published(t *testing.T, target string) linux.DeviceNumber {
	t.Helper()
	node, err := linux.OpenPath(target)
	rig.Must(t, err)
	defer node.Close()
	info, err := linux.Stat(node)
	rig.Must(t, err)
	return info.Device
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	err := try()
	for began := time.Now(); err != nil && time.Since(began) < time.Minute; err = try() {
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// unseen does what a tenant does to his volume while udev looks away: he brings what he
// writes as a whole, as dd of an image does, and not step by step, as programs make it. In
// his pod he has a node of his own; the host looks at the next event of the device.
func unseen(t *testing.T, do func()) {
	t.Helper()
	run(t, "udevadm", "settle")
	run(t, "udevadm", "control", "--stop-exec-queue")
	defer func() {
		run(t, "udevadm", "control", "--start-exec-queue")
		run(t, "udevadm", "settle")
	}()
	do()
}

// writeGroup writes a volume group with a logical volume into a device.
func writeGroup(t *testing.T, group string, number linux.DeviceNumber) {
	t.Helper()
	path, err := sysfs.NodePath(number)
	rig.Must(t, err)
	// A pod has an lvm of its own, which knows neither the host's udev nor its settings.
	own := []string{"--yes", "--devices", path, "--config", "devices{scan_lvs=1} activation{udev_sync=0 udev_rules=0}"}
	unseen(t, func() {
		run(t, "lvm", append(append([]string{"vgcreate"}, own...), group, path)...)
		run(t, "lvm", append(append([]string{"lvcreate"}, own...), "--activate", "n", "--zero", "n", "--wipesignatures", "n", "--extents", "2", "--name", "lv", group)...)
		// LVM's rules look at a partition when it appears, as when the node boots, at a mapping
		// when it is made, and at a loop device whenever it changes.
		action := "change"
		if _, err := os.Stat(fmt.Sprintf("/sys/dev/block/%s/partition", number)); err == nil {
			action = "add"
		}
		run(t, "udevadm", "trigger", "--action="+action, path)
	})
}

// restage ends the pod and starts it again, which makes the mapping of an encrypted volume
// anew, and returns the number of the device. Errors: those of publishing.
func restage(t *testing.T, v *rig.Volume, target string) (linux.DeviceNumber, error) {
	t.Helper()
	ctx := rig.Context(t)
	rig.Must(t, end(t, v, target))
	rig.Must(t, v.Stage(ctx))
	if err := v.Publish(ctx, target); err != nil {
		return linux.DeviceNumber{}, err
	}
	return published(t, target), nil
}

// writeArray writes an MD array that has all of its disks, this one.
func writeArray(t *testing.T, number linux.DeviceNumber) {
	t.Helper()
	path, err := sysfs.NodePath(number)
	rig.Must(t, err)
	unseen(t, func() {
		run(t, "mdadm", "--create", "/dev/md77", "--run", "--force", "--metadata=1.2", "--level=1", "--raid-devices=1", "--homehost=any", path)
		run(t, "mdadm", "--stop", "/dev/md77")
		run(t, "udevadm", "trigger", "--action=change", path)
	})
}

func holdersOf(t *testing.T, number linux.DeviceNumber) []string {
	t.Helper()
	found, err := filepath.Glob(fmt.Sprintf("/sys/dev/block/%s/holders/*", number))
	rig.Must(t, err)
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return found
}

// end does what kubelet does when the pod has ended.
func end(t *testing.T, v *rig.Volume, target string) (unstaged error) {
	t.Helper()
	ctx := rig.Context(t)
	rig.Must(t, v.Unpublish(ctx, target))
	return v.Unstage(ctx)
}

func (n *node) delete(t *testing.T, v *rig.Volume) error {
	t.Helper()
	_, err := n.DeleteVolume(rig.Context(t), &csi.DeleteVolumeRequest{VolumeId: v.ID})
	return err
}

// wantNamed checks that an error says who holds a volume, what that is, and what to do.
func wantNamed(t *testing.T, err error, parts ...string) {
	t.Helper()
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("got %v, want FAILED_PRECONDITION", err)
		return
	}
	for _, part := range append(parts, guide) {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
	t.Log(err)
}

// finding returns what doctor says of who holds a device.
func (n *node) finding(t *testing.T) *doctor.Finding {
	t.Helper()
	found, err := n.doctor.Findings(rig.Context(t))
	rig.Must(t, err)
	for i := range found {
		if found[i].Check == doctor.ForeignHolder {
			return &found[i]
		}
	}
	return nil
}

// Without the rule the host takes the volume: the errors and doctor say by what, and what
// to do, which works.
func TestWithoutTheRule(t *testing.T) {
	n := newNode(t)
	for _, kind := range []string{"file", "disk", "encrypted"} { // LVM does not look at logical volumes (scan_lvs).
		t.Run(kind, func(t *testing.T) {
			group := "evil" + kind
			v, target, number := n.claim(t, kind, "without-"+kind)
			writeGroup(t, group, number)
			mapping, remedy, hasPod := group+"-lv", "dmsetup remove "+group+"-lv", true
			if kind == "encrypted" {
				again, err := restage(t, v, target)
				if hasPod = err == nil; hasPod {
					number = again
				} else { // The host was faster; the mapping has the number that it had.
					wantNamed(t, err, "dm-", "LVM: "+mapping, remedy)
				}
			}
			eventually(t, "activation by the host", func() error {
				if len(holdersOf(t, number)) == 0 {
					return fmt.Errorf("nobody holds %s: %s", number, run(t, "udevadm", "info", "--query=property", "/dev/block/"+number.String()))
				}
				return nil
			})
			if found := n.finding(t); found != nil && hasPod {
				t.Errorf("while a pod has the volume, who may have made it himself: %+v", found)
			}
			err := end(t, v, target)
			if kind == "encrypted" { // Its mapping cannot be closed.
				wantNamed(t, err, "dm-", "LVM: "+mapping, remedy)
			} else {
				rig.Must(t, err)
				wantNamed(t, n.delete(t, v), "dm-", "LVM: "+mapping, remedy)
			}
			found := n.finding(t)
			if found == nil || found.Fix != "" || !strings.Contains(found.Message, "LVM: "+mapping) || !strings.Contains(found.Message, v.ID) ||
				!strings.Contains(found.Remedy, remedy) || !strings.Contains(found.Remedy, guide) {
				t.Errorf("doctor finds %+v", found)
			}
			run(t, "dmsetup", "remove", mapping)
			rig.Must(t, v.Unstage(rig.Context(t)))
			eventually(t, "deletion after the remedy", func() error { return n.delete(t, v) })
			if found := n.finding(t); found != nil {
				t.Errorf("afterwards doctor finds %+v", found)
			}
		})
	}
	t.Run("MD", func(t *testing.T) {
		v, target, number := n.claim(t, "file", "without-md")
		writeArray(t, number)
		eventually(t, "activation by the host", func() error {
			if len(holdersOf(t, number)) == 0 {
				return fmt.Errorf("nobody holds %s", number)
			}
			return nil
		})
		array := holdersOf(t, number)[0]
		rig.Must(t, end(t, v, target))
		wantNamed(t, n.delete(t, v), array, "MD", "mdadm --stop /dev/"+array)
		run(t, "mdadm", "--stop", "/dev/"+array)
		eventually(t, "deletion after the remedy", func() error { return n.delete(t, v) })
	})
}

// With the rule the host leaves the volume alone.
func TestWithTheRule(t *testing.T) {
	n := newNode(t)
	installRule(t)
	write := map[string]func(t *testing.T, group string, number linux.DeviceNumber){
		"LVM": writeGroup,
		"MD":  func(t *testing.T, _ string, number linux.DeviceNumber) { writeArray(t, number) },
	}
	for what, write := range write {
		for _, kind := range kinds {
			t.Run(what+"/"+kind, func(t *testing.T) {
				group := "ruled" + kind
				v, target, number := n.claim(t, kind, "with-"+strings.ToLower(what)+"-"+kind)
				write(t, group, number)
				if kind == "encrypted" {
					var err error
					number, err = restage(t, v, target)
					rig.Must(t, err)
					run(t, "udevadm", "settle")
				}
				properties := run(t, "udevadm", "info", "--query=property", "/dev/block/"+number.String())
				if !strings.Contains(properties, "ID_FS_TYPE=rawblock_csi\n") {
					t.Errorf("udev knows of it:\n%s", properties)
				}
				// LVM notes what it is about to activate, in the rule itself.
				if _, err := os.Stat("/run/lvm/vgs_online/" + group); err == nil {
					t.Errorf("LVM has taken the group %s", group)
				}
				if found := holdersOf(t, number); len(found) != 0 {
					t.Errorf("held by %v", found)
				}
				rig.Must(t, end(t, v, target))
				eventually(t, "deletion", func() error { return n.delete(t, v) })
			})
		}
	}
}

// With lvmlocal.conf LVM's commands see nothing of volumes, and the host's own groups as
// before, also those of a pool.
func TestCommandsOfLVM(t *testing.T) {
	n := newNode(t)
	installRule(t)
	own := machine.Add(t, machine.Disk{Size: size})
	run(t, "lvm", "vgcreate", "--yes", "own", own.Path)
	t.Cleanup(func() { exec.Command("lvm", "vgremove", "--force", "--yes", "own").Run() })
	var ends []func()
	for _, kind := range []string{"file", "disk", "encrypted"} {
		v, target, number := n.claim(t, kind, "seen-"+kind)
		writeGroup(t, "seen"+kind, number)
		ends = append(ends, func() {
			rig.Must(t, end(t, v, target))
			eventually(t, "deletion", func() error { return n.delete(t, v) })
		})
	}
	groups := func() string { return run(t, "lvm", "vgs", "--noheadings", "--options", "vg_name") }
	if before := groups(); !strings.Contains(before, "seenfile") || !strings.Contains(before, "seendisk") || !strings.Contains(before, "seenencrypted") || !strings.Contains(before, "own") {
		t.Errorf("without the file lvm sees\n%s", before)
	}
	install(t, "lvmlocal.conf", "/etc/lvm/lvmlocal.conf")
	if after := groups(); strings.Contains(after, "seen") || !strings.Contains(after, "own") || !strings.Contains(after, "pool-group") {
		t.Errorf("with the file lvm sees\n%s", after)
	}
	run(t, "lvm", "vgchange", "--activate", "y")
	for _, end := range ends {
		end()
	}
}
