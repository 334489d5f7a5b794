package attack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// control is something that whoever has a loop device open can ask of its driver
// (lo_ioctl in the kernel's drivers/block/loop.c), or of the block layer, with a file of his
// own.
type control struct {
	name string
	// open says that every user may, never that nobody may while the device is set up.
	// Else it takes a descriptor for writing, or CAP_SYS_ADMIN; with admin that alone.
	open, never, admin bool
	// views says that it is for read-only loop devices alone.
	views bool
	// tells is what the health of a volume then says of its device.
	tells string
	do    func(device, file int) error
}

// controls are the rows of docs/explanation/loop-control.md.
var controls = []control{
	{name: "LOOP_CLR_FD", open: true, tells: "is marked to end", do: func(device, _ int) error { return unix.IoctlSetInt(device, unix.LOOP_CLR_FD, 0) }},
	{name: "LOOP_SET_FD", never: true, do: func(device, file int) error { return unix.IoctlSetInt(device, unix.LOOP_SET_FD, file) }},
	{name: "LOOP_CHANGE_FD", open: true, views: true, do: func(device, file int) error { return unix.IoctlSetInt(device, loopChangeFD, file) }},
	{name: "LOOP_CONFIGURE", never: true, do: func(device, file int) error {
		return unix.IoctlLoopConfigure(device, &unix.LoopConfig{Fd: uint32(file)})
	}},
	{name: "LOOP_SET_STATUS, offset", tells: "shows only a part", do: func(device, _ int) error { return setOldOffset(device, 4096) }},
	setsStatus("label", "", func(s *unix.LoopInfo64) { copy(s.File_name[:], "rawblock:files/"+victimName+"\x00") }),
	setsStatus("offset", "shows only a part", func(s *unix.LoopInfo64) { s.Offset = 4096 }),
	setsStatus("offset behind the end", "shows only a part", func(s *unix.LoopInfo64) { s.Offset = 2 * volumeSize }),
	setsStatus("size limit", "shows only a part", func(s *unix.LoopInfo64) { s.Sizelimit = 4096 }),
	setsStatus("PARTSCAN", "", func(s *unix.LoopInfo64) { s.Flags |= unix.LO_FLAGS_PARTSCAN }),
	setsStatus("AUTOCLEAR", "is marked to end", func(s *unix.LoopInfo64) { s.Flags |= unix.LO_FLAGS_AUTOCLEAR }),
	{name: "LOOP_SET_CAPACITY", do: func(device, _ int) error { return unix.IoctlSetInt(device, unix.LOOP_SET_CAPACITY, 0) }},
	{name: "LOOP_SET_DIRECT_IO", tells: "the page cache of the node", do: func(device, _ int) error { return unix.IoctlSetInt(device, unix.LOOP_SET_DIRECT_IO, 0) }},
	{name: "LOOP_SET_BLOCK_SIZE", tells: "has blocks of 4096 bytes instead of 512", do: func(device, _ int) error { return unix.IoctlSetInt(device, unix.LOOP_SET_BLOCK_SIZE, 4096) }},
	{name: "BLKPG", admin: true, tells: "has partitions", do: func(device, _ int) error {
		return linux.AddPartition(descriptor(device), 1, rig.MiB, rig.MiB)
	}},
}

// descriptor is one that is the caller's to close.
type descriptor uintptr

func (d descriptor) Fd() uintptr  { return uintptr(d) }
func (d descriptor) Name() string { return "the device" }

func setsStatus(what, tells string, change func(*unix.LoopInfo64)) control {
	return control{name: "LOOP_SET_STATUS64, " + what, tells: tells, do: func(device, _ int) error {
		status, err := unix.IoctlLoopGetStatus64(device)
		if err != nil {
			return err
		}
		change(status)
		return unix.IoctlLoopSetStatus64(device, status)
	}}
}

// setOldOffset is LOOP_SET_STATUS with struct loop_info of linux/loop.h.
func setOldOffset(device int, offset int32) error {
	var old struct {
		number     int32
		device     uint64
		inode      uint64
		rdevice    uint64
		offset     int32
		encryption [2]int32
		flags      int32
		name       [unix.LO_NAME_SIZE]byte
		key        [unix.LO_KEY_SIZE]byte
		init       [2]uint64
		reserved   [4]byte
	}
	old.offset = offset
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(device), unix.LOOP_SET_STATUS, uintptr(unsafe.Pointer(&old))); errno != 0 {
		return errno
	}
	return nil
}

// controlVariable names the control that this program, run once more, does as an attacker:
// descriptor 3 is the device, 4 a file of his.
const controlVariable = "RAWBLOCK_TEST_CONTROL"

func doControl(name string) int {
	for _, c := range controls {
		if c.name != name {
			continue
		}
		if err := c.do(3, 4); err != nil {
			fmt.Print(err)
			return 1
		}
		return 0
	}
	return 2
}

// standing is how an attacker has a device.
type standing struct{ write, admin bool }

func (s standing) String() string {
	return fmt.Sprintf("%s, %s CAP_SYS_ADMIN", map[bool]string{true: "read-write", false: "read-only"}[s.write], map[bool]string{true: "with", false: "without"}[s.admin])
}

// may reports whether the kernel lets him.
func (c control) may(s standing, view bool) bool {
	return !c.never && (view || !c.views) && (c.open || s.admin || s.write && !c.admin)
}

// try has an attacker do it to the device at a target.
func (c control) try(t *testing.T, s standing, target, bait string) error {
	t.Helper()
	flags := os.O_RDONLY
	if s.write {
		flags = os.O_RDWR
	}
	device, err := os.OpenFile(target, flags, 0)
	rig.Must(t, err)
	defer device.Close()
	file, err := os.Open(bait)
	rig.Must(t, err)
	defer file.Close()
	attacker := exec.CommandContext(t.Context(), "/proc/self/exe")
	attacker.Env = append(os.Environ(), controlVariable+"="+c.name)
	attacker.ExtraFiles = []*os.File{device, file}
	if !s.admin {
		attacker.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	said, err := attacker.CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		return errors.New(string(bytes.TrimSpace(said)))
	}
	rig.Must(t, err)
	return nil
}

// loopFacts is what a loop device's users can change about it.
type loopFacts struct {
	number, device, inode, rdevice, offset, limit uint64
	flags                                         uint32
	size, blockSize                               int
	partitions, label                             string
}

// factsOf returns all but what nothing depends on: that a device may have partitions, which
// the kernel keeps until it is detached, and the label of a view.
func factsOf(t *testing.T, target string, view bool) loopFacts {
	t.Helper()
	node, err := os.Open(target)
	rig.Must(t, err)
	defer node.Close()
	number, status := deviceAt(t, target), statusOf(t, target)
	found := loopFacts{
		number: number, device: status.Device, inode: status.Inode, rdevice: status.Rdevice,
		offset: status.Offset, limit: status.Sizelimit, flags: status.Flags &^ unix.LO_FLAGS_PARTSCAN,
	}
	if !view {
		found.label = unix.ByteSliceToString(status.File_name[:])
	}
	found.size, err = unix.IoctlGetInt(int(node.Fd()), unix.BLKGETSIZE64)
	rig.Must(t, err)
	found.blockSize, err = unix.IoctlGetInt(int(node.Fd()), unix.BLKSSZGET)
	rig.Must(t, err)
	partitions, err := filepath.Glob(fmt.Sprintf("/sys/block/loop%d/loop*p*", unix.Minor(number)))
	rig.Must(t, err)
	found.partitions = strings.Join(partitions, " ")
	return found
}

// A loop device that a pod has is a control interface. Whatever he asks of it, with
// whatever rights, other volumes keep their devices and their data, and the next call of
// kubelet makes of the device what it was.
func TestAttackLoopControl(t *testing.T) {
	for _, view := range []bool{false, true} {
		t.Run(map[bool]string{false: "volume", true: "read-only view"}[view], func(t *testing.T) {
			node, ctx := newNode(t), rig.Context(t)
			attacker, victim := node.create(t, "files", "attacker"), node.create(t, "files", victimName)
			theirs := use(t, victim, "victim")
			rig.WriteAt(t, theirs, secret, 0)
			again, mine := attacker.Publish, ""
			if view {
				again, mine = attacker.PublishReadOnly, read(t, attacker, "attacker")
			} else {
				mine = use(t, attacker, "attacker")
			}
			number, before, file := deviceAt(t, theirs), factsOf(t, mine, view), bait(t, volumeSize)
			wantTold(t, node, attacker, "")
			for _, c := range controls {
				for _, s := range []standing{{false, false}, {false, true}, {true, false}, {true, true}} {
					t.Run(c.name+", "+s.String(), func(t *testing.T) {
						err := c.try(t, s, mine, file)
						if may := c.may(s, view); may != (err == nil) {
							t.Errorf("the kernel says %v, want that he may: %t", err, may)
						}
						holds(t, theirs, number)
						tells := ""
						if err == nil && !view {
							tells = c.tells
						}
						wantTold(t, node, attacker, tells)
						rig.Must(t, attacker.Stage(ctx))
						rig.Must(t, again(ctx, mine))
						if got := factsOf(t, mine, view); got != before {
							t.Errorf("it is not set back:\n%+v, was\n%+v", got, before)
						}
						wantTold(t, node, attacker, "")
						holds(t, theirs, number)
					})
				}
			}
		})
	}
}

// wantTold fails the test unless the health of a volume says in one condition what its user
// has changed of its device: with "", that he has changed nothing.
func wantTold(t *testing.T, node node, vol *rig.Volume, what string) {
	t.Helper()
	response, err := node.NodeGetVolumeHealth(rig.Context(t), &csi.NodeGetVolumeHealthRequest{VolumeId: vol.ID})
	rig.Must(t, err)
	var told []string
	for _, entry := range response.GetVolumeHealth().GetHealthStatuses() {
		if entry.GetReason() == string(volume.DeviceChanged) && entry.GetStatus() == csi.VolumeHealthErrorType_DEGRADED {
			told = append(told, entry.GetMessage())
		}
	}
	if what == "" && len(told) != 0 || what != "" && (len(told) != 1 || !strings.Contains(told[0], what) || !strings.Contains(told[0], "/dev/loop")) {
		t.Errorf("its health tells %q of what was changed, want %q", told, what)
	}
}

// The page has a row for each control, and no other.
func TestLoopControlPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/explanation/loop-control.md")
	rig.Must(t, err)
	var rows, want []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)`(, [^|]+)? \\|").FindAllStringSubmatch(string(page), -1) {
		rows = append(rows, row[1]+strings.TrimSpace(row[2]))
	}
	for _, c := range controls {
		want = append(want, c.name)
	}
	slices.Sort(rows)
	slices.Sort(want)
	if !slices.Equal(rows, want) {
		t.Errorf("rows for %q, want %q", rows, want)
	}
}
