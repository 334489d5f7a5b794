package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// HostDevice is a block device of this machine, with or without a partition table.
type HostDevice struct {
	// Path is that of the node that the kernel itself made.
	Path string
	// Refused says why what is on it may have been written by a tenant; empty where
	// only the host has it.
	Refused string
	// Empty says that it has no medium, as a loop device that shows nothing.
	Empty bool
}

// HostDevices returns all block devices, each with whether the host alone has it: a disk
// that is hardware, a partition of it, and what RAID or device-mapper make of such. Never
// a loop device, a logical volume, a partition of a pool of disks, nor what is handed
// out as it is (CheckUnexposed), or lies on any of these. Only the kernel is asked,
// and, for a disk that has partitions, isPools, whether it is one of a pool: who has a
// partition of it cannot change its table. A device that goes meanwhile is left out.
//
// It costs a few reads for each device, reads the mount table, and opens each loop
// device for a moment.
func (s Sysfs) HostDevices(isPools func(disk linux.DeviceNumber) (bool, error)) ([]HostDevice, error) {
	entries, err := os.ReadDir(s.path("dev", "block"))
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	exposed, err := s.exposed()
	if err != nil {
		return nil, err
	}
	look := survey{s, isPools, exposed, map[linux.DeviceNumber]string{}}
	var found []HostDevice
	for _, entry := range entries {
		number, err := linux.ParseDeviceNumber(entry.Name())
		if err != nil {
			return nil, fmt.Errorf("list block devices: %w", err)
		}
		path, err := s.NodePath(number)
		if errors.Is(err, volume.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sectors, err := readNumber(s.device(number), "size")
		found = append(found, HostDevice{path, look.refusal(number, 0), err != nil || sectors == 0})
	}
	slices.SortFunc(found, func(a, b HostDevice) int { return strings.Compare(a.Path, b.Path) })
	return found, nil
}

// exposed returns the devices whose nodes are mounted, as those of published volumes are,
// and those that a loop device shows, with the reason.
func (s Sysfs) exposed() (map[linux.DeviceNumber]string, error) {
	mounts, err := nodeMounts()
	if err != nil {
		return nil, err
	}
	reasons := map[linux.DeviceNumber]string{}
	for _, m := range mounts {
		// Where something else is mounted over it, the node is no published volume's.
		reasons[m.device] = "it is mounted at " + m.path + ", as a published volume"
	}
	loops, err := s.loopsByBacking()
	if err != nil {
		return nil, err
	}
	for number, over := range loops {
		reasons[number] = "the loop device " + over[0].String() + " shows it"
	}
	return reasons, nil
}

// survey is one look at all devices.
type survey struct {
	sysfs    Sysfs
	isPools  func(linux.DeviceNumber) (bool, error)
	exposed  map[linux.DeviceNumber]string
	refusals map[linux.DeviceNumber]string
}

// encryptedPrefix begins the names of the mappings of encrypted volumes (pkg/luks).
const encryptedPrefix = "rawblock:"

// deepest bounds how many devices lie upon each other; the kernel allows no circle.
const deepest = 32

// refusal returns why a device is not the host's alone, or nothing. What cannot be found
// out is a reason.
func (s *survey) refusal(number linux.DeviceNumber, depth int) string {
	if reason, known := s.refusals[number]; known {
		return reason
	}
	reason, err := s.judge(number, depth)
	if err != nil {
		reason = err.Error()
	}
	s.refusals[number] = reason
	return reason
}

func (s *survey) judge(number linux.DeviceNumber, depth int) (string, error) {
	disk, err := s.sysfs.diskNumber(number)
	if err != nil {
		return "", err
	}
	for _, one := range []linux.DeviceNumber{number, disk} {
		if reason, handedOut := s.exposed[one]; handedOut {
			return reason, nil
		}
	}
	// The tree itself, where the directories above say how it is attached.
	dir, err := filepath.EvalSymlinks(s.sysfs.device(disk))
	if err != nil {
		return "", err
	}
	switch kind := transport(dir); {
	case slices.Contains(Transports(), kind):
		return s.judgeDisk(dir, disk)
	case kind == "dm", kind == "md":
		return s.judgeLayer(dir, disk, depth)
	default:
		return "devices of the driver " + kind + " may be a tenant's", nil
	}
}

// judgeDisk judges a disk that is hardware, or a partition of it.
func (s *survey) judgeDisk(dir string, disk linux.DeviceNumber) (string, error) {
	partitions, err := filepath.Glob(dir + "/*/partition")
	if err != nil || len(partitions) == 0 {
		return "", err
	}
	if pools, err := s.isPools(disk); err != nil || !pools {
		return "", err
	}
	return "it is, or is a partition of, a disk of a pool", nil
}

// judgeLayer judges a device that is made of others.
func (s *survey) judgeLayer(dir string, number linux.DeviceNumber, depth int) (string, error) {
	uuid, err := readText(dir, "dm/uuid") // Documentation/ABI/testing/sysfs-block-dm
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	case strings.HasPrefix(uuid, "LVM-"):
		return "it is a logical volume", nil
	}
	name, err := readText(dir, "dm/name")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if strings.HasPrefix(name, encryptedPrefix) {
		return "it is the mapping " + name + " of an encrypted volume", nil
	}
	below, err := s.sysfs.Slaves(number)
	if err != nil {
		return "", err
	}
	if len(below) == 0 || depth > deepest {
		return "nothing is known of what it is made of", nil
	}
	for _, part := range below {
		if reason := s.refusal(part, depth+1); reason != "" {
			path, _ := s.sysfs.NodePath(part) //nolint:errcheck // It has gone: its number says enough.
			return fmt.Sprintf("it lies on %s (%s): %s", path, part, reason), nil
		}
	}
	return "", nil
}
