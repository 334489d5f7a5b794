// Package health looks at what the plugin reports of real disks that fail, inside of
// a guest machine.
package health

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) {
	machine.OnlyInside()
	rig.Main(m)
}

const size = 64 * rig.MiB

var sysfs = blockdev.NewSysfs("/sys")

// plugin is one whose volumes may be any device, and that may have pools.
type plugin struct{ *rig.Plugin }

func newPlugin(t *testing.T, pools map[string]driver.Pool) plugin {
	t.Helper()
	return plugin{rig.NewPluginWith(t, func(options *driver.Options) {
		options.Devices = static.New([]string{"/dev/*", "/dev/mapper/*"}, sysfs)
		options.Pools = pools
	})}
}

// stage stages a volume of an administrator on a device.
func (p plugin) stage(t *testing.T, device string) string {
	t.Helper()
	id := "vol-" + strings.ReplaceAll(strings.TrimPrefix(device, "/dev/"), "/", "-")
	vol := p.NewVolume(t, id, device)
	rig.Must(t, vol.Stage(rig.Context(t)))
	t.Cleanup(func() { rig.Must(t, vol.Unstage(context.WithoutCancel(t.Context()))) })
	return id
}

// health returns what is wrong with a volume: STATUS REASON: MESSAGE.
func (p plugin) health(t *testing.T, volumeID string) []string {
	t.Helper()
	response, err := p.NodeGetVolumeHealth(rig.Context(t), &csi.NodeGetVolumeHealthRequest{VolumeId: volumeID})
	rig.Must(t, err)
	return texts(response.GetVolumeHealth())
}

func texts(health *csi.VolumeHealth) []string {
	var found []string
	for _, entry := range health.GetHealthStatuses() {
		found = append(found, fmt.Sprintf("%s %s: %s", entry.GetStatus(), entry.GetReason(), entry.GetMessage()))
	}
	return found
}

// storage returns what is wrong with the node's pools.
func (p plugin) storage(t *testing.T) []string {
	t.Helper()
	response, err := p.NodeGetStorageHealth(rig.Context(t), &csi.NodeGetStorageHealthRequest{})
	rig.Must(t, err)
	var found []string
	for _, entry := range response.GetBackendHealth() {
		found = append(found, fmt.Sprintf("%s %s: %s", entry.GetStatus(), entry.GetReason(), entry.GetMessage()))
	}
	return found
}

// await looks until what is found begins as it should: the kernel takes a moment.
func await(t *testing.T, look func() []string, beginnings ...string) []string {
	t.Helper()
	var got []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got = look(); slices.EqualFunc(got, beginnings, strings.HasPrefix) {
			for _, text := range got {
				t.Log(text)
			}
			return got
		}
	}
	t.Fatalf("got %q, want these beginnings: %q", got, beginnings)
	return nil
}

func (p plugin) await(t *testing.T, volumeID string, beginnings ...string) []string {
	t.Helper()
	return await(t, func() []string { return p.health(t, volumeID) }, beginnings...)
}

// I/O errors of a disk are told once they are seen, and that it works again ends them
// no sooner than a day later.
func TestIOErrors(t *testing.T) {
	for _, bus := range []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio} {
		t.Run(string(bus), func(t *testing.T) { testIOErrors(t, bus) })
	}
}

func testIOErrors(t *testing.T, bus machine.Bus) {
	plugin, plugged := newPlugin(t, nil), machine.Add(t, machine.Disk{Bus: bus, Size: size})
	vol := plugin.stage(t, plugged.Path)
	plugin.await(t, vol)
	plugged.Break(t)
	if err := rig.ReadDirect(plugged.Path); err == nil {
		t.Fatal("a broken disk can be read")
	}
	plugin.await(t, vol, "DEGRADED IOErrors: "+plugged.Name+" has returned I/O errors: ")
	plugged.Mend(t)
	rig.Must(t, rig.ReadDirect(plugged.Path))
	plugin.await(t, vol, "DEGRADED IOErrors: ")
}

// A disk shrinks, is put offline, becomes read-only, and goes.
func TestStatesOfADisk(t *testing.T) {
	plugin, plugged := newPlugin(t, nil), machine.Add(t, machine.Disk{Bus: machine.SCSI, Size: size})
	vol := plugin.stage(t, plugged.Path)
	plugin.await(t, vol)
	state := "/sys/block/" + plugged.Name + "/device/state"
	rig.Must(t, os.WriteFile(state, []byte("offline\n"), 0o600))
	plugin.await(t, vol, "INACCESSIBLE DeviceOffline: "+plugged.Name+" is offline")
	rig.Must(t, os.WriteFile(state, []byte("running\n"), 0o600))
	plugin.await(t, vol)
	setReadOnly(t, plugged.Path, 1)
	plugin.await(t, vol, "DEGRADED DeviceReadOnly: "+plugged.Name)
	setReadOnly(t, plugged.Path, 0)
	plugin.await(t, vol)
	plugged.Resize(t, size/2)
	plugin.await(t, vol, fmt.Sprintf("DATA_LOSS SizeShrank: %s has %d bytes, and has had %d", plugged.Name, size/2, size))
	plugged.Resize(t, size)
	plugin.await(t, vol)
	plugged.Unplug(t)
	plugin.await(t, vol, "INACCESSIBLE DeviceGone: block device ")
	plugged.Plug(t)
	got := plugin.health(t, vol)
	if len(got) != 1 || !strings.HasPrefix(got[0], "INACCESSIBLE DeviceReplaced: ") && !strings.HasPrefix(got[0], "INACCESSIBLE DeviceGone: ") {
		t.Errorf("of a disk that was plugged in again: %q", got)
	}
	t.Log(got)
}

func setReadOnly(t *testing.T, path string, on int) {
	t.Helper()
	device, err := os.Open(path)
	rig.Must(t, err)
	defer device.Close()
	rig.Must(t, unix.IoctlSetPointerInt(int(device.Fd()), unix.BLKROSET, on))
}

// Each bit of an NVMe disk's critical warning that concerns volumes is a condition.
func TestNVMeWarnings(t *testing.T) {
	plugin := newPlugin(t, nil)
	well, warning := machine.Add(t, machine.Disk{Bus: machine.NVMe, Size: size}), machine.Add(t, machine.Disk{Bus: machine.NVMe, Size: size})
	warning.Set(t, "smart_critical_warning", "31")
	plugin.await(t, plugin.stage(t, well.Path))
	vol := plugin.stage(t, warning.Path)
	plugin.await(t, vol, "DEGRADED NVMeSpareLow: "+warning.Name, "DEGRADED NVMeTemperature: ", "DEGRADED NVMeUnreliable: ", "DEGRADED NVMeReadOnly: ", "DEGRADED NVMeUnprotected: ")
	warning.Unplug(t)
	plugin.await(t, vol, "INACCESSIBLE DeviceGone: ")
}

func dmsetup(t *testing.T, table string, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "dmsetup", args...)
	command.Stdin = strings.NewReader(table)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("dmsetup %v: %v: %s", args, err, output)
	}
}

// A mapping is suspended, gets a table that fails, and loses the disk below it.
func TestMapping(t *testing.T) {
	plugin, plugged := newPlugin(t, nil), machine.Add(t, machine.Disk{Bus: machine.SCSI, Size: size})
	const name = "health-test"
	linear := fmt.Sprintf("0 %d linear %s 0\n", size/512, plugged.Path)
	dmsetup(t, linear, "create", name)
	t.Cleanup(func() { exec.Command("dmsetup", "remove", "--force", name).Run() })
	vol := plugin.stage(t, "/dev/mapper/"+name)
	plugin.await(t, vol)
	dmsetup(t, "", "suspend", name)
	plugin.await(t, vol, "INACCESSIBLE DeviceBlocked: dm-")
	dmsetup(t, fmt.Sprintf("0 %d error\n", size/512), "load", name)
	dmsetup(t, "", "resume", name)
	plugin.await(t, vol, "INACCESSIBLE MappingFailed: dm-")
	dmsetup(t, linear, "load", name)
	dmsetup(t, "", "resume", name)
	plugin.await(t, vol)
	plugged.Unplug(t)
	plugin.await(t, vol, "INACCESSIBLE DeviceGone: ")
	dmsetup(t, fmt.Sprintf("0 %d error\n", size/512), "load", name)
	dmsetup(t, "", "resume", name) // So that it can be removed.
}

// newPool makes a pool of the disks, once they are wiped.
func newPool(t *testing.T, disks ...*machine.Plugged) *disk.Pool {
	t.Helper()
	var options disk.Options
	for _, plugged := range disks {
		options.Match.Paths = append(options.Match.Paths, plugged.Path)
	}
	pool, err := disk.New(t.Context(), "disks", options, sysfs)
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	await(t, func() []string {
		for _, member := range pool.Status().Disks {
			if len(member.Wiping) > 0 {
				return []string{"wiping"}
			}
		}
		return nil
	})
	return pool
}

func (p plugin) create(t *testing.T, pool, name string) string {
	t.Helper()
	made, err := p.CreateVolume(rig.Context(t), &csi.CreateVolumeRequest{
		Name: name, Parameters: map[string]string{"pool": pool},
		CapacityRange:      &csi.CapacityRange{RequiredBytes: size / 2, LimitBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{(&rig.Volume{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}).Capability()},
	})
	rig.Must(t, err)
	return made.GetVolume().GetVolumeId()
}

// A disk of a pool goes: its volume, staged or not, is told of, and the other is well.
func TestPoolOfDisks(t *testing.T) {
	first, second := machine.Add(t, machine.Disk{Size: size}), machine.Add(t, machine.Disk{Size: size})
	pool := newPool(t, first, second)
	plugin := newPlugin(t, map[string]driver.Pool{"disks": pool})
	one, two := plugin.create(t, "disks", "one"), plugin.create(t, "disks", "two")
	plugin.await(t, one)
	plugin.await(t, two)
	storage := func() []string { return plugin.storage(t) }
	await(t, storage)
	first.Unplug(t)
	gone, well := one, two
	if len(plugin.health(t, one)) == 0 {
		gone, well = two, one
	}
	lost := "INACCESSIBLE DeviceGone: pool disks: the disk " + first.Path
	plugin.await(t, gone, lost)
	plugin.await(t, well)
	await(t, storage, "STORAGE_DEGRADED DiskGone: pool disks: the disk "+first.Path)
	// Once the pool has let the disk go, too.
	_, err := plugin.ListVolumes(rig.Context(t), &csi.ListVolumesRequest{})
	rig.Must(t, err)
	plugin.await(t, gone, lost)
	await(t, storage, "STORAGE_DEGRADED DiskGone: pool disks: the disk "+first.Path)
	list, err := plugin.ControllerListVolumeHealth(rig.Context(t), &csi.ControllerListVolumeHealthRequest{})
	rig.Must(t, err)
	if entries := list.GetEntries(); len(entries) != 1 || entries[0].GetVolumeId() != gone {
		t.Errorf("listed: %v", entries)
	}
	first.Plug(t)
	_, err = plugin.ListVolumes(rig.Context(t), &csi.ListVolumesRequest{})
	rig.Must(t, err)
	plugin.await(t, gone)
	await(t, storage)
	_, err = plugin.NodeGetVolumeHealth(rig.Context(t), &csi.NodeGetVolumeHealthRequest{VolumeId: "disks/none@" + rig.NodeID})
	if status.Code(err) != codes.NotFound {
		t.Errorf("of no volume: %v", err)
	}
}

// The faults of the disk that the filesystem of a pool of files is on are those of its
// volumes.
func TestPoolOfFiles(t *testing.T) {
	plugged := machine.Add(t, machine.Disk{Size: 2 * size})
	output, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", plugged.Path).CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs: %v: %s", err, output)
	}
	dir := t.TempDir()
	rig.Must(t, unix.Mount(plugged.Path, dir, "ext4", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	pool, err := file.New(t.Context(), "files", file.Options{Directory: dir, Capacity: size}, sysfs)
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	plugin := newPlugin(t, map[string]driver.Pool{"files": pool})
	id := plugin.create(t, "files", "vol")
	vol := plugin.Provisioned(t, id)
	rig.Must(t, vol.Stage(rig.Context(t)))
	plugin.await(t, id)
	plugged.Unplug(t)
	// The filesystem may have found out, too.
	worst := func(found []string) []string { return found[:min(len(found), 1)] }
	await(t, func() []string { return worst(plugin.health(t, id)) }, "INACCESSIBLE DeviceGone: block device ")
	await(t, func() []string { return slices.DeleteFunc(plugin.storage(t), isOfFilesystem) }, "STORAGE_DEGRADED DeviceGone: pool files: block device ")
	// The filesystem has lost its disk: what is left of the volume is taken down by hand.
	exec.CommandContext(t.Context(), "losetup", "--detach-all").Run()
}

func isOfFilesystem(text string) bool {
	return strings.Contains(text, "PoolReadOnly") || strings.Contains(text, "PoolErrors") || strings.Contains(text, "CheckFailed")
}

// A disk hangs: each call is answered, also about the other disks, and after a minute
// without an answer of the disk that is told.
func TestHang(t *testing.T) {
	for _, bus := range []machine.Bus{machine.SCSI, machine.NVMe, machine.Virtio} {
		t.Run(string(bus), func(t *testing.T) {
			t.Parallel() // Each waits for a minute.
			testHang(t, bus)
		})
	}
}

func testHang(t *testing.T, bus machine.Bus) {
	plugin := newPlugin(t, nil)
	hung, other := machine.Add(t, machine.Disk{Bus: bus, Size: size}), machine.Add(t, machine.Disk{Bus: bus, Size: size})
	vol, well := plugin.stage(t, hung.Path), plugin.stage(t, other.Path)
	plugin.await(t, vol)
	hung.Hang(t)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		// The machine lets the first request through.
		for ; ; time.Sleep(10 * time.Millisecond) {
			select {
			case <-stop:
				return
			default:
				rig.ReadDirect(hung.Path)
			}
		}
	}()
	var seen []string
	for end := time.Now().Add(5 * time.Minute); len(seen) == 0 && time.Now().Before(end); time.Sleep(time.Second) {
		if got := plugin.health(t, well); len(got) > 0 {
			t.Fatalf("the other disk: %q", got)
		}
		seen = plugin.health(t, vol)
	}
	t.Log(seen)
	if len(seen) == 0 || !strings.HasPrefix(seen[0], "INACCESSIBLE ") {
		t.Errorf("got %q", seen)
	}
	hung.Mend(t)
	close(stop)
	<-ended
}
