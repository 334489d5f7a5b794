package blockdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// ErrNoFact says that the hardware or its driver does not state a fact, such as
// a serial number. A fact that is stated but cannot be read is another error.
var ErrNoFact = errors.New("the device states none")

// Sysfs is the kernel's tree of devices (sysfs(5)). The zero value is not valid.
type Sysfs struct {
	root  string
	asked *loopAnswers
}

// NewSysfs returns the tree that is mounted at root: /sys but in tests.
func NewSysfs(root string) Sysfs { return Sysfs{root, newLoopAnswers()} }

// Check reports whether the tree can be read.
func (s Sysfs) Check() error {
	if _, err := os.ReadDir(s.path("dev", "block")); err != nil {
		return fmt.Errorf("read the tree of block devices: %w", err)
	}
	return nil
}

// NodePath returns the path of the node that the kernel itself made for a
// device. Errors: volume.ErrNotFound where there is no device with that number.
func (s Sysfs) NodePath(number linux.DeviceNumber) (string, error) {
	path, err := nodePath(s.device(number))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: there is no block device %s any more", volume.ErrNotFound, number)
	}
	if err != nil {
		return "", fmt.Errorf("name of block device %s: %w", number, err)
	}
	return path, nil
}

// nodePath returns /dev and the DEVNAME of the uevent file in a device's directory
// (Documentation/ABI/testing/sysfs-uevent).
func nodePath(dir string) (string, error) {
	uevent, err := linux.ReadFile(dir + "/uevent")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(uevent) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok && filepath.IsLocal(name) {
			return "/dev/" + name, nil
		}
	}
	return "", errors.New("its uevent file has no DEVNAME")
}

// WWID returns the world wide identifier of the disk: the file wwid of an NVMe
// namespace, or device/wwid of a SCSI disk. For a partition it is that of its
// disk. Errors: ErrNoFact.
func (s Sysfs) WWID(number linux.DeviceNumber) (string, error) {
	return s.firstFact(number, "wwid", "device/wwid")
}

// Serial returns the serial number of the disk: the file serial of virtio-blk,
// device/serial of NVMe, or the unit serial number page of SCSI
// (device/vpd_pg80). For a partition it is that of its disk. Errors: ErrNoFact.
func (s Sysfs) Serial(number linux.DeviceNumber) (string, error) {
	serial, err := s.firstFact(number, "serial", "device/serial")
	if !errors.Is(err, ErrNoFact) {
		return serial, err
	}
	disk, err := s.disk(number)
	if err != nil {
		return "", err
	}
	page, err := os.ReadFile(disk + "/device/vpd_pg80")
	if isUnstated(err) {
		return "", ErrNoFact
	}
	if err != nil {
		return "", fmt.Errorf("serial number page: %w", err)
	}
	return parseUnitSerial(page)
}

// parseUnitSerial reads the unit serial number page of a SCSI disk: a byte for
// the kind of device, the page code 0x80, two bytes of length, the serial number
// (SPC-5, 7.7.20).
func parseUnitSerial(page []byte) (string, error) {
	if len(page) < 4 || page[1] != 0x80 {
		return "", fmt.Errorf("serial number page of %d bytes is malformed", len(page))
	}
	length := int(binary.BigEndian.Uint16(page[2:4]))
	if len(page)-4 < length {
		return "", fmt.Errorf("serial number page of %d bytes promises a serial number of %d", len(page), length)
	}
	serial := strings.Trim(string(page[4:4+length]), " \x00")
	if serial == "" {
		return "", ErrNoFact
	}
	return serial, nil
}

// firstFact returns the content of the first of the named files that says something.
func (s Sysfs) firstFact(number linux.DeviceNumber, names ...string) (string, error) {
	disk, err := s.disk(number)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		content, err := linux.ReadFile(disk + "/" + name)
		if isUnstated(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read a fact of block device %s: %w", number, err)
		}
		if fact := strings.TrimSpace(content); fact != "" {
			return fact, nil
		}
	}
	return "", ErrNoFact
}

// isUnstated reports whether an error of reading a fact says that there is none: no
// such file, or, of a SCSI disk, ENXIO where it has no page with identifiers and
// EINVAL where there is none on the page (scsi_vpd_lun_id in drivers/scsi/scsi_lib.c,
// sdev_show_vpd_pg80 in scsi_sysfs.c). A disk that has gone is ENODEV.
func isUnstated(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.EINVAL)
}

// Overlap reports whether two devices have blocks in common: they are the same,
// or one is a partition of the other.
func (s Sysfs) Overlap(a, b linux.DeviceNumber) (bool, error) {
	if a == b {
		return true, nil
	}
	for _, pair := range [][2]linux.DeviceNumber{{a, b}, {b, a}} {
		disk, err := s.disk(pair[0])
		if errors.Is(err, volume.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		number, err := linux.ReadFile(disk + "/dev")
		if err != nil {
			return false, fmt.Errorf("number of the disk of block device %s: %w", pair[0], err)
		}
		if strings.TrimSpace(number) == pair[1].String() {
			return true, nil
		}
	}
	return false, nil
}

// disk returns the directory of the whole disk that the device is, or is a
// partition of.
func (s Sysfs) disk(number linux.DeviceNumber) (string, error) {
	dir := s.device(number)
	switch _, err := os.Stat(dir + "/partition"); {
	case err == nil:
		// The directory is a link: its parent is the disk only where the kernel
		// walks the path, so it must not be cleaned.
		return dir + "/..", nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("see whether block device %s is a partition: %w", number, err)
	}
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("%w: there is no block device %s any more: %w", volume.ErrNotFound, number, err)
	}
	return dir, nil
}

func (s Sysfs) path(elements ...string) string {
	return filepath.Join(append([]string{s.root}, elements...)...)
}

// device returns the directory of a device: a link into the tree.
func (s Sysfs) device(number linux.DeviceNumber) string {
	return s.path("dev", "block", number.String())
}
