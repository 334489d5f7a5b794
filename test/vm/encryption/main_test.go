// Package encryption_test has the tests of encrypted volumes, which run in a guest
// machine: with the real cryptsetup, and a kernel that has dm-crypt.
package encryption_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
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
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
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
	rig.Main(m)
}

var sysfs = blockdev.NewSysfs("/sys")

// cheap keys are derived at once: what that costs is not what these tests are about.
var cheap = luks.KDF{Kind: "pbkdf2", Iterations: 1000}

const (
	name   = "pvc-0a1b2c3d-1111-2222-3333-444455556666"
	second = "pvc-ffffffff-1111-2222-3333-444455556666"
	size   = 8 * rig.MiB
	header = 16 * rig.MiB
)

// node is a node with a pool that has encrypted volumes.
type node struct {
	*rig.Plugin
	pool driver.Pool
	keys string
	// key is the secret of its volumes.
	key string
	// options are those that it was started with.
	options driver.Options
}

// newNode starts the plugin with a pool.
func newNode(t *testing.T, pool driver.Pool) *node {
	t.Helper()
	n := &node{pool: pool, keys: t.TempDir(), key: newKey(t)}
	n.Plugin = rig.NewPluginWith(t, func(options *driver.Options) {
		options.Pools = map[string]driver.Pool{"pool": pool}
		options.Encryption = luks.New(program.New(""), sysfs, cheap)
		options.Keys = luks.KeyDirectory(n.keys)
		n.options = *options
	})
	return n
}

// restart starts the plugin anew beside the one that is there, which knows nothing of
// it: the kernel and the medium are what they share.
func (n *node) restart(t *testing.T) {
	t.Helper()
	options := n.options
	options.Endpoint = filepath.Join(t.TempDir(), "csi.sock")
	options.Encryption = luks.New(program.New(""), sysfs, cheap)
	var err error
	options.Publisher, err = publish.New(n.StateDir, sysfs)
	rig.Must(t, err)
	rig.Serve(t, options)
	stateDir := n.StateDir
	n.Plugin = rig.Connect(t, options.Endpoint, options.KubeletDir)
	n.StateDir = stateDir
}

func newKey(t *testing.T) string {
	t.Helper()
	random := make([]byte, 32)
	_, err := rand.Read(random)
	rig.Must(t, err)
	return hex.EncodeToString(random)
}

// pools are kinds of pools, each on a medium of its own.
var pools = map[string]func(t *testing.T) driver.Pool{
	"files on XFS":          func(t *testing.T) driver.Pool { return newFiles(t, "xfs") },
	"partitions":            func(t *testing.T) driver.Pool { pool, _ := newPartitions(t, 0); return pool },
	"thick logical volumes": func(t *testing.T) driver.Pool { return newLVM(t, "") },
	"thin logical volumes":  func(t *testing.T) driver.Pool { return newLVM(t, "tp") },
	"partitions of a disk with sectors of 4096 bytes": func(t *testing.T) driver.Pool { pool, _ := newPartitions(t, 4096); return pool },
}

func newLVM(t *testing.T, thinPool string) driver.Pool {
	t.Helper()
	medium := machine.Add(t, machine.Disk{Size: 160 * rig.MiB})
	group := "vg-encrypted"
	run(t, "", "lvm", "vgcreate", "--yes", "--physicalextentsize", "1M", group, medium.Path)
	t.Cleanup(func() {
		if output, err := exec.Command("lvm", "vgremove", "--force", "--force", "--yes", group).CombinedOutput(); err != nil {
			t.Errorf("lvm vgremove: %v\n%s", err, output)
		}
	})
	if thinPool != "" {
		run(t, "", "lvm", "lvcreate", "--yes", "--type", "thin-pool", "--size", "128M", "--name", thinPool, group)
	}
	pool, err := lvm.New(t.Context(), "pool", lvm.Options{VolumeGroup: group, ThinPool: thinPool}, program.New(""), sysfs)
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	if thinPool != "" {
		return lvm.ThinPool{Pool: pool}
	}
	return pool
}

func newFiles(t *testing.T, filesystem string) *file.Pool {
	t.Helper()
	pool, err := file.New(t.Context(), "pool", file.Options{Directory: filepath.Join(rig.Filesystem(t, filesystem, 400*rig.MiB), "pool")}, sysfs)
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func newPartitions(t *testing.T, blockSize int) (*disk.Pool, *machine.Plugged) {
	t.Helper()
	medium := machine.Add(t, machine.Disk{Size: 128 * rig.MiB, LogicalBlockSize: blockSize})
	pool, err := disk.New(t.Context(), "pool", disk.Options{Match: disk.Selector{Paths: []string{medium.Path}}}, sysfs)
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	eventually(t, "the disk to be wiped", func() bool {
		capacity, err := pool.Capacity(t.Context(), nil)
		return err == nil && capacity.Available > 100*rig.MiB
	})
	return pool, medium
}

// encrypted are the parameters of a StorageClass.
func encrypted() map[string]string {
	return map[string]string{driver.EncryptionParameter: "luks2"}
}

func block() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
}

// vol is an encrypted volume, as its users see it.
type vol struct {
	*rig.Volume
	node    *node
	secrets map[string]string
}

// request is what external-provisioner sends.
func request(name string) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size, LimitBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{block()}, Parameters: encrypted(),
	}
}

// create makes a volume. It is given up with the test.
func (n *node) create(t *testing.T, req *csi.CreateVolumeRequest) *vol {
	t.Helper()
	made, err := n.CreateVolume(rig.Context(t), req)
	rig.Must(t, err)
	if got := made.GetVolume().GetCapacityBytes(); got != req.GetCapacityRange().GetRequiredBytes() {
		t.Errorf("asked for %d bytes, got %d", req.GetCapacityRange().GetRequiredBytes(), got)
	}
	v := &vol{Volume: n.Provisioned(t, made.GetVolume().GetVolumeId()), node: n, secrets: map[string]string{driver.KeySecret: n.key}}
	v.Context, v.Mode = made.GetVolume().GetVolumeContext(), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	plugin := n.Plugin
	t.Cleanup(func() {
		n.Plugin = plugin // One that was started since has ended by now.
		ctx := context.WithoutCancel(t.Context())
		targets, _ := filepath.Glob(filepath.Dir(v.Target(t, "x")) + "/*")
		for _, target := range targets {
			rig.Must(t, v.unpublish(ctx, target))
		}
		rig.Must(t, v.unstage(ctx))
		_, err := v.node.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.ID})
		rig.Must(t, err)
	})
	return v
}

func (v *vol) stage(ctx context.Context) error {
	_, err := v.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.ID, StagingTargetPath: v.Staging, VolumeCapability: v.Capability(), VolumeContext: v.Context, Secrets: v.secrets,
	})
	return err
}

func (v *vol) unstage(ctx context.Context) error {
	_, err := v.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.ID, StagingTargetPath: v.Staging})
	return err
}

func (v *vol) publish(ctx context.Context, target string) error {
	_, err := v.node.NodePublishVolume(ctx, v.PublishRequest(target, false))
	return err
}

func (v *vol) unpublish(ctx context.Context, target string) error {
	_, err := v.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.ID, TargetPath: target})
	return err
}

// use stages and publishes a volume for a pod, and returns the target.
func (v *vol) use(t *testing.T, pod string) string {
	t.Helper()
	target := v.Target(t, pod)
	rig.Must(t, v.stage(rig.Context(t)))
	rig.Must(t, v.publish(rig.Context(t), target))
	return target
}

// drop ends that.
func (v *vol) drop(t *testing.T, targets ...string) {
	t.Helper()
	for _, target := range targets {
		rig.Must(t, v.unpublish(rig.Context(t), target))
	}
	rig.Must(t, v.unstage(rig.Context(t)))
	if name, open := v.mapping(); open {
		t.Errorf("mapping %s is open after the volume was unstaged", name)
	}
}

// mapping returns the name of the volume's mapping, and whether there is one.
func (v *vol) mapping() (string, bool) {
	name := "rawblock:" + strings.NewReplacer("/", ":").Replace(strings.TrimSuffix(v.ID, "@"+rig.NodeID))
	control, err := linux.OpenMapper()
	if err != nil {
		return name, false
	}
	defer control.Close()
	_, err = control.MappingNamed(name)
	return name, err == nil
}

// raw opens the device of the volume's pool. The caller closes it.
func (v *vol) raw(t *testing.T) *blockdev.Device {
	t.Helper()
	device, err := v.node.pool.Activate(rig.Context(t), strings.TrimSuffix(strings.TrimPrefix(v.ID, "pool/"), "@"+rig.NodeID))
	rig.Must(t, err)
	return device
}

// rawPath is the path of that.
func (v *vol) rawPath(t *testing.T) string {
	t.Helper()
	raw := v.raw(t)
	defer raw.Close()
	return raw.Node().Name()
}

func wantCode(t *testing.T, err error, want codes.Code, says ...string) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("got %v, want %v", err, want)
	}
	for _, text := range says {
		if !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("got %v, want %q in it", err, text)
		}
	}
}

func run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	command := exec.CommandContext(rig.Context(t), name, args...)
	command.Stdin = strings.NewReader(stdin)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// sizeOf returns the size of the device at a path.
func sizeOf(t *testing.T, path string) uint64 {
	t.Helper()
	device, err := os.Open(path)
	rig.Must(t, err)
	defer device.Close()
	bytes, err := linux.BlockSize(device)
	rig.Must(t, err)
	return bytes
}

// write writes to a device and waits until it is there.
func write(t *testing.T, path, data string, offset int64) {
	t.Helper()
	device, err := os.OpenFile(path, os.O_WRONLY, 0)
	rig.Must(t, err)
	defer device.Close()
	_, err = device.WriteAt([]byte(data), offset)
	rig.Must(t, err)
	rig.Must(t, device.Sync())
}

// wantData fails the test unless there is that at an offset.
func wantData(t *testing.T, path, data string, offset int64) {
	t.Helper()
	if got := rig.ReadAt(t, path, len(data), offset); got != data {
		t.Errorf("%s has %q at %d, want %q", path, got, offset, data)
	}
}

// content reads all of the raw device of a volume, past the page cache.
func (v *vol) content(t *testing.T) []byte {
	t.Helper()
	raw := v.raw(t)
	defer raw.Close()
	device, err := linux.OpenRaw(raw.Node(), 0)
	rig.Must(t, err)
	defer device.Close()
	all := make([]byte, raw.Size())
	_, err = device.ReadAt(all, 0)
	rig.Must(t, err)
	return all
}

// wantUnchanged fails the test where the raw device is not as it was.
func (v *vol) wantUnchanged(t *testing.T, before []byte) {
	t.Helper()
	if !bytes.Equal(v.content(t), before) {
		t.Error("something was changed on the raw device")
	}
}

// eventually waits for what happens in the background.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1200 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("waited for %s", what)
}
