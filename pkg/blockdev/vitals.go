package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Vitals are what the kernel tells of how a device is. The device itself is neither
// opened nor asked, so that one that does not answer keeps nobody waiting.
type Vitals struct {
	// Name is the kernel's name of the device.
	Name string
	// DiskSeq is that of Device.DiskSeq: for a partition that of its disk.
	DiskSeq uint64
	// Partition says that it is a partition: another one may have its number next, and
	// the same sequence number.
	Partition bool
	// Size is its size in bytes: 0 where there is no medium.
	Size uint64
	// ReadOnly says that it refuses all writes.
	ReadOnly bool
	// States are the states of what leads to the disk: that of a SCSI device, or those
	// of the controllers of an NVMe disk, as the kernel calls them. Others have none.
	States []string
	// Controllers are the names of the controllers of an NVMe disk.
	Controllers []string
	// HasErrors says that there is a count of commands that failed: SCSI has one.
	HasErrors bool
	Errors    uint64
	// Completed counts requests that have ended, well or not; InFlight are under way.
	Completed, InFlight uint64
	// Mapped says that it is a device of device-mapper, Suspended that it makes all
	// I/O wait.
	Mapped, Suspended bool
	// Backing is what a loop device shows; nil where it is none.
	Backing *Backing
	// Below are the devices that it is made of: the disk of a partition, the members
	// of a mapping or array, what holds the file of a loop device.
	Below []linux.DeviceNumber
	// Lost are the names of those that were below, and have gone.
	Lost []string
	// Redundant says that one of those below can take the place of another.
	Redundant bool
}

// Backing is the file or device that a loop device shows.
type Backing struct {
	// Path is where it is, or was.
	Path string
	// Deleted says that the file is in no directory any more.
	Deleted bool
	// Size is the size of the file in bytes, if IsKnown says that it can be seen from
	// here and is a file.
	Size    uint64
	IsKnown bool
}

// Vitals returns how a device is. Errors: volume.ErrNotFound where there is none with
// that number; volume.ErrMismatch where it was replaced meanwhile.
func (s Sysfs) Vitals(number linux.DeviceNumber) (Vitals, error) {
	vitals, err := s.vitals(number)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		// A file that goes while it is read, or is not there yet.
		return Vitals{}, fmt.Errorf("%w: block device %s has gone: %w", volume.ErrNotFound, number, err)
	}
	if err != nil {
		return Vitals{}, fmt.Errorf("how block device %s is: %w", number, err)
	}
	return vitals, nil
}

func (s Sysfs) vitals(number linux.DeviceNumber) (Vitals, error) {
	dir, err := filepath.EvalSymlinks(s.device(number))
	if err != nil {
		return Vitals{}, err
	}
	disk := dir
	switch _, err := os.Stat(dir + "/partition"); {
	case err == nil:
		disk = filepath.Dir(dir)
	case !errors.Is(err, fs.ErrNotExist):
		return Vitals{}, err
	}
	v := Vitals{Name: filepath.Base(dir), Partition: disk != dir}
	if v.DiskSeq, err = readSeq(disk); err != nil {
		return Vitals{}, err
	}
	for _, read := range []func(string) error{v.readSelf, v.readCounts, v.readMapping} {
		if err := read(dir); err != nil {
			return Vitals{}, err
		}
	}
	if err := s.readBelow(&v, dir, disk); err != nil {
		return Vitals{}, err
	}
	if disk == dir {
		if err := v.readDriver(dir + "/device"); err != nil {
			return Vitals{}, err
		}
	}
	if seq, err := readSeq(disk); err != nil || seq != v.DiskSeq {
		return Vitals{}, errors.Join(err, fmt.Errorf("%w: it was replaced while it was looked at", volume.ErrMismatch))
	}
	return v, nil
}

func (v *Vitals) readSelf(dir string) error {
	sectors, err := readNumber(dir, "size")
	if err != nil {
		return err
	}
	v.Size = sectors * 512 // Whatever the block size is.
	v.ReadOnly, err = readFlag(dir, "ro")
	return err
}

// The columns of the file stat (Documentation/block/stat.rst). Those of discards and
// flushes are younger than the file.
const (
	statInFlight = 8
	statColumns  = 11
)

var statEnded = []int{0, 4, 11, 15} // Reads, writes, discards, flushes.

func (v *Vitals) readCounts(dir string) error {
	text, err := readText(dir, "stat")
	if err != nil {
		return err
	}
	columns := strings.Fields(text)
	if len(columns) < statColumns {
		return fmt.Errorf("stat has %d columns: %q", len(columns), text)
	}
	count := func(column int) uint64 {
		if column >= len(columns) || err != nil {
			return 0
		}
		var number uint64
		number, err = strconv.ParseUint(columns[column], 10, 64)
		return number
	}
	v.InFlight = count(statInFlight)
	for _, column := range statEnded {
		v.Completed += count(column)
	}
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	return nil
}

// readMapping reads what device-mapper tells (Documentation/ABI/testing/sysfs-block-dm).
func (v *Vitals) readMapping(dir string) error {
	var err error
	v.Suspended, err = readFlag(dir, "dm/suspended")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	v.Mapped = true
	return err
}

// readDriver reads what the drivers of SCSI and NVMe tell, in the directory of the
// hardware (drivers/scsi/scsi_sysfs.c, drivers/nvme/host/sysfs.c and multipath.c).
func (v *Vitals) readDriver(dir string) error {
	place, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // A device without hardware.
	}
	if err != nil {
		return err
	}
	controllers := []string{place}
	if strings.HasPrefix(filepath.Base(place), "nvme-subsys") {
		// The disk has several ways, and each has a controller.
		if controllers, err = filepath.Glob(place + "/nvme[0-9]*"); err != nil {
			return err
		}
		controllers = slices.DeleteFunc(controllers, func(path string) bool { return !nvmeController.MatchString(filepath.Base(path)) })
	}
	for _, controller := range controllers {
		state, err := readText(controller, "state")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		v.States = append(v.States, state)
		if name := filepath.Base(controller); nvmeController.MatchString(name) {
			v.Controllers = append(v.Controllers, name)
		}
	}
	v.Errors, err = readHex(place, "ioerr_cnt")
	v.HasErrors = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

var nvmeController = regexp.MustCompile(`^nvme[0-9]+$`)

func readHex(dir, name string) (uint64, error) { return readInBase(dir, name, 0) }

// readBelow finds what a device is made of.
func (s Sysfs) readBelow(v *Vitals, dir, disk string) error {
	if disk != dir {
		return v.addBelow(disk)
	}
	members, err := os.ReadDir(dir + "/slaves")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, member := range members {
		if err := v.addBelow(filepath.Join(dir, "slaves", member.Name())); err != nil {
			return err
		}
	}
	if v.Redundant, err = isRedundant(dir); err != nil {
		return err
	}
	return s.readBacking(v, dir)
}

func (v *Vitals) addBelow(dir string) error {
	text, err := readText(dir, "dev")
	if errors.Is(err, fs.ErrNotExist) {
		v.Lost = append(v.Lost, filepath.Base(dir))
		return nil
	}
	if err != nil {
		return err
	}
	number, err := linux.ParseDeviceNumber(text)
	v.Below = append(v.Below, number)
	return err
}

// isRedundant reports whether a mapping is of dm-multipath, whose UUID says so, or an
// array has copies (Documentation/admin-guide/md.rst: level).
func isRedundant(dir string) (bool, error) {
	uuid, err := readText(dir, "dm/uuid")
	if err == nil {
		return strings.HasPrefix(uuid, "mpath-"), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	level, err := readText(dir, "md/level")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return level != "raid0" && level != "linear", err
}

// deleted is what the kernel adds to the path of a file that is in no directory any
// more (d_path in the kernel's fs/d_path.c).
const deleted = " (deleted)"

// readBacking finds what holds the file of a loop device. Of one that cannot be seen
// from here no more is known.
func (s Sysfs) readBacking(v *Vitals, dir string) error {
	text, err := readText(dir, "loop/backing_file")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	v.Backing = &Backing{Path: text}
	info, err := linux.StatPath(text)
	if err != nil {
		v.Backing.Path, v.Backing.Deleted = strings.CutSuffix(text, deleted)
		return nil //nolint:nilerr // See above.
	}
	number := info.ID.Device
	if info.IsBlockDevice() {
		number = info.Device
	} else {
		v.Backing.Size, v.Backing.IsKnown = info.Size, true
	}
	if number.Major != 0 { // A filesystem that is on no block device, or on several.
		v.Below = append(v.Below, number)
	}
	return nil
}

// DiskNamed returns the number of the disk that the kernel calls by a name now, and its
// sequence number. Errors: volume.ErrNotFound.
func (s Sysfs) DiskNamed(name string) (number linux.DeviceNumber, seq uint64, err error) {
	if !filepath.IsLocal(name) {
		return number, 0, fmt.Errorf("%w: there is no disk %q", volume.ErrNotFound, name)
	}
	dir := s.path("block", strings.ReplaceAll(name, "/", "!")) // As kobject_set_name does.
	text, err := readText(dir, "dev")
	if err == nil {
		number, err = linux.ParseDeviceNumber(text)
	}
	if err == nil {
		seq, err = readSeq(dir)
	}
	if err != nil {
		return number, 0, fmt.Errorf("%w: disk %s: %w", volume.ErrNotFound, name, err)
	}
	return number, seq, nil
}

// OpenController opens an NVMe controller by its name and verifies that the node is
// the kernel's. Errors: volume.ErrNotFound, volume.ErrMismatch.
func (s Sysfs) OpenController(name string) (*linux.File, error) {
	controller, err := linux.OpenFile("/dev/"+name, false)
	if errors.Is(err, fs.ErrNotExist) || IsGone(err) {
		return nil, fmt.Errorf("%w: NVMe controller %s: %w", volume.ErrNotFound, name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open NVMe controller %s: %w", name, err)
	}
	info, err := linux.Stat(controller)
	if err == nil {
		var number string
		if number, err = readText(s.path("class", "nvme", name), "dev"); err == nil && number != info.Device.String() {
			err = fmt.Errorf("%w: /dev/%s is %s, and the NVMe controller %s", volume.ErrMismatch, name, info.Device, number)
		}
	}
	if err != nil {
		controller.Close()
		return nil, err
	}
	return controller, nil
}
