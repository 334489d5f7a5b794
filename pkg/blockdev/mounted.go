package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"k8s.io/mount-utils"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Mounted is a place where the node of a device is mounted.
type Mounted struct {
	// Path is the mount point.
	Path string
	// View says that what is mounted there is a loop device over the device, ReadOnly
	// that this one refuses writes.
	View, ReadOnly bool
}

// Mounted returns the places where the node of a device, or of a loop device over it,
// is mounted: where it is published as a volume, whatever is recorded. Neither is a
// claim, so CheckFree does not see them.
//
// It reads the mount table: use it before something is taken away, and where records
// are missing, not where a volume is published.
//
// A mount of the node that a disk had which has gone counts too, where this device has
// got its number: who opens that node opens this device.
func (s Sysfs) Mounted(number linux.DeviceNumber) ([]Mounted, error) {
	path, err := s.NodePath(number)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	mounts, err := nodeMounts()
	if err != nil {
		return nil, err
	}
	var minors []uint32
	for _, m := range mounts {
		if m.device.Major == linux.LoopMajor {
			minors = append(minors, m.device.Minor)
		}
	}
	answers := s.askEach(minors)
	var found []Mounted
	for _, m := range mounts {
		one, is := Mounted{Path: m.path}, m.node == path || m.device == number
		if !is && m.device.Major == linux.LoopMajor {
			loop, err := shown(answers[m.device.Minor])
			if err != nil {
				return nil, fmt.Errorf("see what is mounted at %s: %w", m.path, err)
			}
			one.View, one.ReadOnly, is = true, loop.ReadOnly, loop.Device == number
		}
		if is && !slices.ContainsFunc(found, func(other Mounted) bool { return other.Path == one.Path }) {
			found = append(found, one)
		}
	}
	return found, nil
}

// nodeMount is a mount of something that is in the filesystem of the host's device nodes.
type nodeMount struct {
	path string
	// node is the path of what was mounted where that is known, and device what is there now:
	// of no number where it is no block device, or was unmounted.
	node   string
	device linux.DeviceNumber
}

// nodeMounts returns the mounts of parts of the filesystem that the host's device nodes are
// in, as those of published volumes are. A node elsewhere says nothing: a pod makes one with
// any number in a tmpfs of its own, and has kubelet mount it (subPath). Nor does it hang,
// which a look at a mount point of another filesystem could.
func nodeMounts() (found []nodeMount, err error) {
	dev, err := linux.StatPath("/dev")
	if err != nil {
		return nil, fmt.Errorf("look at the directory of device nodes: %w", err)
	}
	table, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	for _, m := range table {
		if m.Root == "/" || uint64(m.Major) != uint64(dev.ID.Device.Major) || uint64(m.Minor) != uint64(dev.ID.Device.Minor) { //nolint:gosec // Device numbers are not negative.
			continue
		}
		one := nodeMount{path: m.MountPoint}
		if m.FsType == "devtmpfs" {
			one.node = "/dev" + m.Root
		}
		info, err := linux.StatPath(m.MountPoint)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("see what is mounted at %s: %w", m.MountPoint, err)
		}
		if info.IsBlockDevice() {
			one.device = info.Device
		}
		found = append(found, one)
	}
	return found, nil
}

// ViewOf tells whether a device is a loop device over the block device with a number,
// and whether it refuses writes. The kernel says so, and not its label.
func (s Sysfs) ViewOf(device, number linux.DeviceNumber) (is, readOnly bool, err error) {
	if number == (linux.DeviceNumber{}) {
		return false, false, nil
	}
	loop, err := s.shownBy(device)
	return loop.Device == number, loop.ReadOnly, err
}

// shownBy returns a loop device, where it is one that shows something: the zero value
// otherwise.
func (s Sysfs) shownBy(number linux.DeviceNumber) (LoopDevice, error) {
	if number.Major != linux.LoopMajor {
		return LoopDevice{}, nil
	}
	loop, err := s.loopDevice(number.Minor)
	return shown(&loopAnswer{loop, err})
}

// shown returns a loop device, the zero value where it shows nothing.
func shown(answer *loopAnswer) (LoopDevice, error) {
	if errors.Is(answer.err, volume.ErrNotFound) || errors.Is(answer.err, errDead) {
		return LoopDevice{}, nil
	}
	return answer.loop, answer.err
}

// CheckUnpublished returns an error that wraps volume.ErrInUse where the device is
// published, as Mounted sees it. Records can be lost, and a mount is no claim: use it
// before a device is taken away.
func (d *Device) CheckUnpublished() error { return d.sysfs.CheckUnpublished(d.number) }

// CheckUnpublished does the same by the number of a device. One that has gone is
// published nowhere.
func (s Sysfs) CheckUnpublished(number linux.DeviceNumber) error {
	found, err := s.Mounted(number)
	if err != nil || len(found) == 0 {
		return err
	}
	return fmt.Errorf("%w: the node of device %s is mounted at %s: it is published as a volume; unpublish it first, or unmount it", volume.ErrInUse, number, found[0].Path)
}

// CheckUnexposed returns an error that wraps volume.ErrInUse where the device is
// handed out as it is: it is published (CheckUnpublished), or a loop device shows it,
// as kubelet holds one over each published volume.
//
// It also asks each loop device: use it where a disk is taken in.
func (d *Device) CheckUnexposed() error {
	if err := d.CheckUnpublished(); err != nil {
		return err
	}
	loops, err := d.sysfs.loopsByBacking()
	if over := loops[d.number]; len(over) > 0 {
		return fmt.Errorf("%w: the loop device loop%d shows %s", volume.ErrInUse, over[0].Minor, d)
	}
	return err
}
