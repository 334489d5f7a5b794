package linux

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MapperControl is the open control device of device-mapper (linux/dm-ioctl.h).
// Mappings are named to it by their device numbers: keep a mapping's device open, so
// that its number is not given to another. Close it after use.
//
// Errors of all calls that name a mapping: ENXIO where no mapping has the number.
type MapperControl struct{ file *File }

// MapperError says that this machine has no device-mapper, or one that speaks
// another protocol. It unwraps to the kernel's error.
type MapperError struct{ Err error }

func (e *MapperError) Error() string { return "no device-mapper here: " + e.Err.Error() }

func (e *MapperError) Unwrap() error { return e.Err }

const mapperNode = "/dev/mapper/" + unix.DM_CONTROL_NODE

// mapperVersion is the version of the protocol that is asked for. A kernel refuses
// another major version, and a minor one above its own (check_version in
// drivers/md/dm-ioctl.c). All that is used here is older than the first.
var mapperVersion = [3]uint32{unix.DM_VERSION_MAJOR, 0, 0}

// OpenMapper opens the control device. Errors: *MapperError where there is none (no
// node, or no module behind it), or the kernel speaks another protocol.
func OpenMapper() (*MapperControl, error) {
	file, err := openAt(unix.AT_FDCWD, mapperNode, mapperNode, unix.O_RDWR)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil, &MapperError{err}
	}
	if err != nil {
		return nil, err
	}
	control := &MapperControl{file}
	// EINVAL: another major version.
	if _, err := control.call(unix.DM_VERSION, DeviceNumber{}, 0, nil); err != nil {
		control.Close()
		return nil, &MapperError{err}
	}
	return control, nil
}

// Close closes the control device.
func (c *MapperControl) Close() { c.file.Close() }

// MappingInfo is what the kernel tells of a mapping (DM_DEV_STATUS).
type MappingInfo struct {
	// Number is the number of its device.
	Number DeviceNumber
	// Name and UUID are what it was given; UUID may be empty. The name can be
	// changed, the UUID cannot, once it was given (dev_rename in
	// drivers/md/dm-ioctl.c).
	Name, UUID string
	// Opened is how often it is open: by processes, mounts, other mappings.
	Opened int
	// Suspended says that all I/O waits until it is resumed.
	Suspended bool
	// ReadOnly says that it refuses writes.
	ReadOnly bool
	// Active says that it has a table, and Inactive that another was loaded, which
	// takes effect when it is resumed.
	Active, Inactive bool
	// Events is the number of its last event.
	Events uint32
}

// MappingTarget is a row of a table. Lengths are in sectors of 512 bytes, as in
// dmsetup(8).
type MappingTarget struct {
	Start, Length uint64
	// Type is the name of the target, such as linear, crypt or error.
	Type string
	// Parameters are as the target reads or reports them.
	Parameters string
}

// Mappings returns the numbers and names of all mappings (DM_LIST_DEVICES).
func (c *MapperControl) Mappings() (map[DeviceNumber]string, error) {
	answer, err := c.call(unix.DM_LIST_DEVICES, DeviceNumber{}, 0, nil)
	if err != nil {
		return nil, err
	}
	return parseMappings(answer.data)
}

// Mapping returns what is known of a mapping.
func (c *MapperControl) Mapping(number DeviceNumber) (MappingInfo, error) {
	answer, err := c.call(unix.DM_DEV_STATUS, number, 0, nil)
	if err != nil {
		return MappingInfo{}, err
	}
	return answer.info(), nil
}

// MappingNamed returns what is known of the mapping with a name. Errors: ENXIO where
// there is none.
func (c *MapperControl) MappingNamed(name string) (MappingInfo, error) {
	request := newMapperRequest(DeviceNumber{}, 0, nil)
	if len(name) >= len(request.header.Name) {
		return MappingInfo{}, os.NewSyscallError("ioctl DM_DEV_STATUS", unix.ENXIO)
	}
	copy(request.header.Name[:], name)
	answer, err := c.send(unix.DM_DEV_STATUS, request, ioctl)
	if err != nil {
		return MappingInfo{}, err
	}
	return answer.info(), nil
}

// Table returns the table that is in effect (DM_TABLE_STATUS with
// DM_STATUS_TABLE_FLAG); none where there is no table. Keys of dm-crypt are among the
// parameters, unless they are in the kernel's keyring: do not log them.
func (c *MapperControl) Table(number DeviceNumber) ([]MappingTarget, error) {
	return c.targets(number, unix.DM_STATUS_TABLE_FLAG|unix.DM_NOFLUSH_FLAG|unix.DM_SECURE_DATA_FLAG)
}

// Status returns the rows of the table with what the targets report of themselves
// instead of their parameters (DM_TABLE_STATUS). A thin pool is not made to commit
// first.
func (c *MapperControl) Status(number DeviceNumber) ([]MappingTarget, error) {
	return c.targets(number, unix.DM_NOFLUSH_FLAG)
}

func (c *MapperControl) targets(number DeviceNumber, flags uint32) ([]MappingTarget, error) {
	answer, err := c.call(unix.DM_TABLE_STATUS, number, flags, nil)
	if err != nil {
		return nil, err
	}
	return parseTargets(answer.data, answer.header.Target_count)
}

// LoadTable gives a mapping a table that takes effect when it is resumed
// (DM_TABLE_LOAD), and that replaces one that was loaded before.
func (c *MapperControl) LoadTable(number DeviceNumber, table []MappingTarget, readOnly bool) error {
	var flags uint32
	if readOnly {
		flags = unix.DM_READONLY_FLAG
	}
	_, err := c.call(unix.DM_TABLE_LOAD, number, flags, table)
	return err
}

// ClearTable forgets a table that was loaded and is not in effect (DM_TABLE_CLEAR).
func (c *MapperControl) ClearTable(number DeviceNumber) error {
	_, err := c.call(unix.DM_TABLE_CLEAR, number, 0, nil)
	return err
}

// Suspend has new I/O wait, and returns once what is under way has ended
// (DM_DEV_SUSPEND). Queued I/O is not flushed out first (DM_NOFLUSH_FLAG), and a
// mounted filesystem is not frozen (DM_SKIP_LOCKFS_FLAG). A mapping that is suspended
// stays so.
//
// What a disk does not answer, it waits for until ctx ends: the mapping then goes on
// as before, and the error is that of the context.
func (c *MapperControl) Suspend(ctx context.Context, number DeviceNumber) error {
	request := newMapperRequest(number, unix.DM_SUSPEND_FLAG|unix.DM_NOFLUSH_FLAG|unix.DM_SKIP_LOCKFS_FLAG, nil)
	_, err := c.send(unix.DM_DEV_SUSPEND, request, func(file Descriptor, command uint, arg unsafe.Pointer) error {
		// With a name beside the number, the kernel finds no mapping.
		spoil := func() { (*unix.DmIoctl)(arg).Name[0] = 'x' }
		return ioctlUntil(ctx, file, command, arg, spoil)
	})
	return err
}

// Resume puts a loaded table into effect and lets I/O go on (DM_DEV_SUSPEND without
// DM_SUSPEND_FLAG). Call it for a mapping that is suspended: of another one the kernel
// would wait for I/O that is under way, as Suspend does, and could lose the table.
func (c *MapperControl) Resume(number DeviceNumber) error {
	_, err := c.call(unix.DM_DEV_SUSPEND, number, unix.DM_NOFLUSH_FLAG|unix.DM_SKIP_LOCKFS_FLAG, nil)
	return err
}

// Remove removes a mapping that nobody has open (DM_DEV_REMOVE). Errors: EBUSY.
func (c *MapperControl) Remove(number DeviceNumber) error {
	_, err := c.call(unix.DM_DEV_REMOVE, number, 0, nil)
	return err
}

// mapperMessage is a request to the control device, or its answer.
type mapperMessage struct {
	header unix.DmIoctl
	data   []byte
}

func newMapperRequest(number DeviceNumber, flags uint32, table []MappingTarget) mapperMessage {
	header := unix.DmIoctl{Version: mapperVersion, Flags: flags, Target_count: uint32(len(table))} //nolint:gosec // Few rows.
	if number != (DeviceNumber{}) {
		header.Dev = unix.Mkdev(number.Major, number.Minor)
	}
	return mapperMessage{header, formatTargets(table)}
}

func (c *MapperControl) call(command uint, number DeviceNumber, flags uint32, table []MappingTarget) (mapperMessage, error) {
	return c.send(command, newMapperRequest(number, flags, table), ioctl)
}

// mapperBuffer is how many bytes of an answer are asked for at first, and
// maxMapperBuffer at most.
const (
	mapperBuffer    = 16 << 10
	maxMapperBuffer = 4 << 20
)

// send sends a request by an ioctl, with an ever larger buffer for as long as the answer does not
// fit (DM_BUFFER_FULL_FLAG).
func (c *MapperControl) send(command uint, request mapperMessage, ioctl func(Descriptor, uint, unsafe.Pointer) error) (mapperMessage, error) {
	name := mapperCommands[command]
	for size := max(mapperBuffer, unix.SizeofDmIoctl+len(request.data)); size <= maxMapperBuffer; size *= 2 {
		// In words of 8 bytes: the kernel's structures are aligned to that.
		buffer := make([]uint64, (size+7)/8)
		whole := unsafe.Slice((*byte)(unsafe.Pointer(&buffer[0])), len(buffer)*8)
		header := (*unix.DmIoctl)(unsafe.Pointer(&buffer[0]))
		*header = request.header
		header.Data_size, header.Data_start = uint32(len(whole)), unix.SizeofDmIoctl //nolint:gosec // At most maxMapperBuffer.
		copy(whole[unix.SizeofDmIoctl:], request.data)
		if err := ioctl(c.file, command, unsafe.Pointer(header)); err != nil {
			return mapperMessage{}, os.NewSyscallError(name, err)
		}
		if header.Flags&unix.DM_BUFFER_FULL_FLAG != 0 {
			continue
		}
		start, end := header.Data_start, min(header.Data_size, uint32(len(whole))) //nolint:gosec // At most maxMapperBuffer.
		if start > end {
			start = end // No data.
		}
		return mapperMessage{*header, whole[start:end]}, nil
	}
	return mapperMessage{}, os.NewSyscallError(name, unix.EMSGSIZE)
}

// mapperCommands are the names of the ioctls, for errors.
var mapperCommands = map[uint]string{
	unix.DM_VERSION:      "ioctl DM_VERSION",
	unix.DM_LIST_DEVICES: "ioctl DM_LIST_DEVICES",
	unix.DM_DEV_STATUS:   "ioctl DM_DEV_STATUS",
	unix.DM_DEV_REMOVE:   "ioctl DM_DEV_REMOVE",
	unix.DM_DEV_SUSPEND:  "ioctl DM_DEV_SUSPEND",
	unix.DM_TABLE_LOAD:   "ioctl DM_TABLE_LOAD",
	unix.DM_TABLE_CLEAR:  "ioctl DM_TABLE_CLEAR",
	unix.DM_TABLE_STATUS: "ioctl DM_TABLE_STATUS",
}

// ioctlUntil makes an ioctl that may wait in the kernel, where a signal interrupts it,
// and gives up when ctx ends. Some kernels have an ioctl that was interrupted begin anew
// by itself (signal(7), SA_RESTART, with which the Go runtime handles all signals), with
// what the argument is by then: spoil makes it one that fails at once.
func ioctlUntil(ctx context.Context, file Descriptor, request uint, arg unsafe.Pointer, spoil func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	returned := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { interruptUntil(ctx, thread, returned, spoil) })
	defer watching.Wait()
	defer close(returned)
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), uintptr(request), uintptr(arg))
		switch {
		case errno == 0:
			return nil
		case errno != unix.EINTR && ctx.Err() == nil:
			return errno
		}
	}
}

func (m mapperMessage) info() MappingInfo {
	h, has := m.header, func(flag uint32) bool { return m.header.Flags&flag != 0 }
	return MappingInfo{
		Number:    DeviceNumber{unix.Major(h.Dev), unix.Minor(h.Dev)},
		Name:      unix.ByteSliceToString(h.Name[:]),
		UUID:      unix.ByteSliceToString(h.Uuid[:]),
		Opened:    int(h.Open_count),
		Suspended: has(unix.DM_SUSPEND_FLAG),
		ReadOnly:  has(unix.DM_READONLY_FLAG),
		Active:    has(unix.DM_ACTIVE_PRESENT_FLAG),
		Inactive:  has(unix.DM_INACTIVE_PRESENT_FLAG),
		Events:    h.Event_nr,
	}
}
