package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// failureMode is one that a test injects, and what it says of it to people.
type failureMode struct {
	title, cause string
	// reason is the health reason that is to be seen, if any.
	reason string
	// begin makes the node, and returns who uses the volume, or will, or nil, and what
	// injects the failure.
	begin func(t *testing.T, s *scene) (user *patient, inject func())
}

const failureSize = 64 * rig.MiB

// failureModes are those of docs/explanation/failure-modes.md, in its order.
var failureModes = []failureMode{
	{
		"A disk goes while a pod uses it", "A SCSI disk that an administrator named is pulled out under a pod.", "DeviceGone",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.SCSI)
			return user, func() { disk.Unplug(t) }
		},
	},
	{
		"A disk of a pool goes", "A disk with a partition that a pod uses is pulled out.", "DeviceGone",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofPool(t)
			return user, func() { disk.Unplug(t) }
		},
	},
	{
		"A disk goes and comes back", "A disk that a pod uses is pulled out, and plugged in again. The kernel knows it as another one.", "DeviceReplaced|DeviceGone",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.SCSI)
			return user, func() { disk.Unplug(t); disk.Plug(t) }
		},
	},
	{
		"A disk returns I/O errors", "Each read and write of a SCSI disk fails.", "IOErrors",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.SCSI)
			return user, func() { disk.Break(t); readOften(disk.Path) }
		},
	},
	{
		"An NVMe disk returns I/O errors", "Each read and write of an NVMe disk fails.", "IOErrors",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.NVMe)
			return user, func() { disk.Break(t); readOften(disk.Path) }
		},
	},
	{
		"A disk does not answer", "A virtio disk hangs, with a request of a pod under way.", "IOStalled",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.Virtio)
			s.end = func() { disk.Mend(t) }
			return user, func() {
				disk.Hang(t)
				go readOften(disk.Path) // The machine lets the first request through.
			}
		},
	},
	{
		"A disk is put offline", "The kernel, or somebody, gives a SCSI disk up.", "DeviceOffline",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.SCSI)
			return user, func() {
				rig.Must(t, os.WriteFile("/sys/block/"+disk.Name+"/device/state", []byte("offline\n"), 0o600))
			}
		},
	},
	{
		"A disk turns read-only", "A disk refuses writes, as some do at the end of their life.", "DeviceReadOnly",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.SCSI)
			return user, func() {
				device, err := os.Open(disk.Path)
				rig.Must(t, err)
				defer device.Close()
				rig.Must(t, unix.IoctlSetPointerInt(int(device.Fd()), unix.BLKROSET, 1))
			}
		},
	},
	{
		"A disk shrinks", "A disk of a storage system becomes smaller while a pod uses it.", "SizeShrank",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.SCSI)
			return user, func() { disk.Resize(t, failureSize/2) }
		},
	},
	{
		"An NVMe disk warns", "All critical warnings of its SMART log are set.", "NVMeSpareLow",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.NVMe)
			return user, func() { disk.Set(t, "smart_critical_warning", "31") }
		},
	},
	{
		"A mapping fails", "The table of a device-mapper device gets an error target, as after a forced detach.", "MappingFailed",
		func(t *testing.T, s *scene) (*patient, func()) {
			name, user := s.ofMapping(t)
			return user, func() {
				command(t, "dmsetup", "suspend", name)
				command(t, "dmsetup", "load", name, "--table", fmt.Sprintf("0 %d error", failureSize/512))
				command(t, "dmsetup", "resume", name)
			}
		},
	},
	{
		"A mapping is suspended", "Somebody, or a program that was killed, has suspended a device-mapper device.", "DeviceBlocked",
		func(t *testing.T, s *scene) (*patient, func()) {
			name, user := s.ofMapping(t)
			s.end = func() { exec.Command("dmsetup", "resume", name).Run() }
			return user, func() { command(t, "dmsetup", "suspend", name) }
		},
	},
	{
		"The file of a volume is deleted", "Somebody deletes the data of a volume of a pool of files that a pod uses.", "BackingDeleted",
		func(t *testing.T, s *scene) (*patient, func()) {
			user := s.ofFiles(t, "")
			return user, func() { rig.Must(t, os.Remove(s.data(t))) }
		},
	},
	{
		"The record of a volume is damaged", "The record.json of a volume of a pool of files has garbage.", "RecordDamaged",
		func(t *testing.T, s *scene) (*patient, func()) {
			user := s.ofFiles(t, "")
			return user, func() {
				rig.Must(t, os.WriteFile(filepath.Join(filepath.Dir(s.data(t)), "record.json"), []byte("{"), 0o600))
			}
		},
	},
	{
		"The filesystem of a pool fails", "The disk of a pool of files fails a write of the filesystem's journal, and is mended. ext4 refuses all writes then.", "PoolErrors|PoolReadOnly",
		func(t *testing.T, s *scene) (*patient, func()) {
			user := s.ofFiles(t, "")
			return user, func() {
				// What is to be written must be there before: nothing can be read either.
				where := filepath.Dir(s.files)
				rig.Must(t, os.Mkdir(filepath.Join(where, "one"), 0o755))
				s.disk.Break(t)
				exec.Command("sync", "--file-system", where).Run() // It ends with EIO.
				s.disk.Mend(t)
				if err := os.Mkdir(filepath.Join(where, "two"), 0o755); !errors.Is(err, unix.EROFS) {
					t.Errorf("a directory is made: %v", err)
				}
			}
		},
	},
	{
		"A wipe fails", "A volume is deleted, and a block of its space cannot be written any more.", "WipeFailing",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofPool(t)
			return nil, func() {
				disk.BreakAt(t, startOf(t, user.target)+2*rig.MiB)
				rig.Must(t, user.takeDown(rig.Context(t), t))
				_, err := s.csi.DeleteVolume(rig.Context(t), &csi.DeleteVolumeRequest{VolumeId: user.ID})
				rig.Must(t, err)
			}
		},
	},
	{
		"A filesystem with thin volumes fills", "Something else fills the filesystem of a pool of files with thin volumes.", "PoolFull|PoolFilling",
		func(t *testing.T, s *scene) (*patient, func()) {
			s.parameters = map[string]string{"thin": "true"}
			user := s.ofFiles(t, ", overcommit: 4")
			return user, func() {
				exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(filepath.Dir(s.files), "others"), "bs=1M").Run() // It ends with ENOSPC.
			}
		},
	},
	{
		"A thin pool of LVM fills", "A pod has written so much that more than nine tenths of an over-committed thin pool are used.", "PoolFilling|PoolFull",
		func(t *testing.T, s *scene) (*patient, func()) {
			_, user := s.ofLVM(t, "--type thin-pool --size 32M --name tp", ", thinPool: tp, overcommit: 2", 60*rig.MiB)
			return user, func() {
				exec.Command("dd", "if=/dev/zero", "of="+user.target, "bs=1M", "count=30", "oflag=direct").Run()
			}
		},
	},
	{
		"The disk of an attachment goes", "A disk that a pod uses, and that another container was given while it ran, is pulled out.", "AttachmentLost",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofDisk(t, machine.SCSI)
			s.attach(t, user, true)
			return user, func() { disk.Unplug(t) }
		},
	},
	{
		"The volume group of LVM goes", "The one disk of a volume group is pulled out under a pod.", "DiskGone",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk, user := s.ofLVM(t, "", "", 4*rig.MiB)
			return user, func() { disk.Unplug(t) }
		},
	},
}

// TestVMFailureModes injects each failure on a node of its own, and writes what people
// see of it: the text of docs/explanation/failure-modes.md. It runs in a guest machine.
func TestVMFailureModes(t *testing.T) {
	machine.Require(t)
	path := os.Getenv(failurePage)
	if path == "" {
		t.Fatalf("%s does not say where the text is to be written", failurePage)
	}
	expected, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		rig.Must(t, err)
	}
	var page strings.Builder
	for _, mode := range slices.Concat(failureModes, refusals) {
		var seen string
		for attempt := range 3 {
			t.Run(fmt.Sprintf("%s/%d", mode.title, attempt), func(t *testing.T) { seen = mode.see(t) })
			// A machine that is slow for a moment shows other things: a pool that is silent.
			if len(expected) == 0 || strings.Contains(string(expected), strings.TrimSpace(seen)) {
				break
			}
		}
		page.WriteString(seen)
	}
	rig.Must(t, os.WriteFile(path, []byte(page.String()), 0o600))
}

// failurePage names the file that is to have what is seen, and may have what is expected.
const failurePage = "RAWBLOCK_FAILURES"

// scene is a node that something is to befall.
type scene struct {
	*ward
	address string
	// disk is that of the filesystem of ofFiles.
	disk *machine.Plugged
	// end ends a failure in which requests wait.
	end func()
}

// begin starts the plugin, with pools.
func (s *scene) begin(t *testing.T, pools string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	rig.Must(t, err)
	s.address = listener.Addr().String()
	rig.Must(t, listener.Close())
	s.flags = []string{"--metrics-address=" + s.address, "-v=2"}
	s.configure(t, "devices: {allow: [/dev/sd*, /dev/nvme*, /dev/vd*, /dev/mapper/*]}\n"+pools)
}

// use has a pod use a volume.
func (s *scene) use(t *testing.T, pool, device string) *patient {
	t.Helper()
	user := s.admit(t, pool, "victim", device)
	user.publish(t, false)
	return user
}

func (s *scene) ofDisk(t *testing.T, bus machine.Bus) (*machine.Plugged, *patient) {
	t.Helper()
	disk := machine.Add(t, machine.Disk{Bus: bus, Size: failureSize})
	s.begin(t, "")
	return disk, s.use(t, "", disk.Path)
}

func (s *scene) ofPool(t *testing.T) (*machine.Plugged, *patient) {
	t.Helper()
	disk := machine.Add(t, machine.Disk{Size: failureSize, Serial: "failing"})
	s.begin(t, "pools: [{name: pool, disk: {match: {paths: ["+disk.Path+"]}}}]\n")
	return disk, s.use(t, "pool", "")
}

func (s *scene) ofMapping(t *testing.T) (name string, user *patient) {
	t.Helper()
	name = s.mapping(t)
	return name, s.use(t, "", "/dev/mapper/"+name)
}

// mapping makes a mapping over a disk, which no pod uses.
func (s *scene) mapping(t *testing.T) (name string) {
	t.Helper()
	disk := machine.Add(t, machine.Disk{Size: failureSize})
	name = "failing"
	command(t, "dmsetup", "create", name, "--table", fmt.Sprintf("0 %d linear %s 0", failureSize/512, disk.Path))
	t.Cleanup(func() { exec.Command("dmsetup", "remove", "--force", name).Run() })
	s.begin(t, "")
	return name
}

// ofFiles has a pool of files on a filesystem of its own.
func (s *scene) ofFiles(t *testing.T, options string) *patient {
	t.Helper()
	s.disk = machine.Add(t, machine.Disk{Size: failureSize})
	command(t, "mkfs.ext4", "-q", s.disk.Path)
	where := filepath.Dir(s.files)
	command(t, "mount", s.disk.Path, where)
	t.Cleanup(func() { unix.Unmount(where, unix.MNT_DETACH) })
	s.begin(t, "pools: [{name: pool, file: {directory: "+s.files+", capacity: 32Mi"+options+"}}]\n")
	return s.use(t, "pool", "")
}

// attach gives the volume to a container that runs; shared where a pod has it too.
func (s *scene) attach(t *testing.T, user *patient, shared bool) hotplug.Attachment {
	t.Helper()
	container := rig.NewContainer(t, oci.Config{CgroupV2: true})
	pid, err := container.PID(rig.Context(t))
	rig.Must(t, err)
	request := hotplug.Request{Volume: user.ID, Shared: shared, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb"}
	attachment, err := admin.NewClient(s.socket()).Attach(rig.Context(t), request)
	rig.Must(t, err)
	return attachment
}

// startOf is where the partition that is published at a path begins, in bytes.
func startOf(t *testing.T, path string) int64 {
	t.Helper()
	var stat unix.Stat_t
	rig.Must(t, unix.Stat(path, &stat))
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/start", unix.Major(stat.Rdev), unix.Minor(stat.Rdev)))
	rig.Must(t, err)
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	rig.Must(t, err)
	return sectors * 512
}

// data is the file with the bytes of the one volume.
func (s *scene) data(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.files, "*", "*", "data"))
	rig.Must(t, err)
	if len(found) != 1 {
		t.Fatalf("the files with data are %q", found)
	}
	return found[0]
}

// ofLVM has a volume group of one disk, and a thin pool in it if lvcreate is to make one.
func (s *scene) ofLVM(t *testing.T, lvcreate, options string, size int64) (*machine.Plugged, *patient) {
	t.Helper()
	disk := machine.Add(t, machine.Disk{Size: failureSize})
	const group = "failing"
	command(t, "lvm", "vgcreate", group, disk.Path)
	t.Cleanup(func() { exec.Command("lvm", "vgremove", "--force", "--force", "--yes", group).Run() })
	if lvcreate != "" {
		command(t, "lvm", append(append([]string{"lvcreate", "--yes"}, strings.Fields(lvcreate)...), group)...)
	}
	s.size = size
	s.begin(t, "pools: [{name: pool, lvm: {volumeGroup: "+group+options+"}}]\n")
	return disk, s.use(t, "pool", "")
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	said, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, said)
	}
	return string(said)
}

// readOften reads like a pod that does not give up.
func readOften(path string) {
	for range 100 {
		rig.ReadDirect(path) //nolint:errcheck // It waits, fails or works.
		time.Sleep(10 * time.Millisecond)
	}
}

// takeDown is what kubelet does when the pod ends.
func (p *patient) takeDown(ctx context.Context, t *testing.T) error {
	t.Helper()
	detachIfOver(t, p.lock, p.mapping)
	os.Remove(p.link)          //nolint:errcheck // As kubelet.
	unix.Unmount(p.mapping, 0) //nolint:errcheck // As kubelet.
	os.Remove(p.mapping)       //nolint:errcheck // As kubelet.
	if err := p.Unpublish(ctx, p.target); err != nil {
		return fmt.Errorf("NodeUnpublishVolume: %w", err)
	}
	if err := p.Unstage(ctx); err != nil {
		return fmt.Errorf("NodeUnstageVolume: %w", err)
	}
	return nil
}
