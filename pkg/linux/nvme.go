package linux

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The command NVME_IOCTL_ADMIN_CMD and its argument (linux/nvme_ioctl.h).
const nvmeAdminCommand = 0xc0484e41

type nvmePassthru struct {
	opcode, flags           uint8
	_                       uint16
	namespace               uint32
	_, _                    uint32
	metadata, address       uint64
	metadataLen, addressLen uint32
	dwords                  [6]uint32 // From command dword 10.
	timeout, result         uint32    // In milliseconds.
}

// What is asked for (NVM Express base specification 2.0, 5.16.1): the command Get Log
// Page, and the SMART / Health Information log of the whole controller.
const (
	nvmeGetLogPage   = 0x02
	nvmeSMARTPage    = 0x02
	nvmeAll          = 0xffffffff
	nvmeSMARTSize    = 512
	nvmeSMARTTimeout = 5000
)

// NVMeError is the status with which a controller refused a command (NVM Express base
// specification 2.0, 3.3.3.2.1).
type NVMeError struct{ Status int }

func (e *NVMeError) Error() string {
	return fmt.Sprintf("the NVMe controller answered with status %#x", e.Status)
}

// NVMeSMARTLog returns the SMART / Health Information log of an open NVMe controller
// or disk, 512 bytes (NVME_IOCTL_ADMIN_CMD). The controller itself is asked: one that
// does not answer keeps the caller waiting until the kernel has reset it. Errors:
// *NVMeError where it has no such log.
func NVMeSMARTLog(device Descriptor) ([]byte, error) {
	log := make([]byte, nvmeSMARTSize)
	command := nvmePassthru{
		opcode: nvmeGetLogPage, namespace: nvmeAll, timeout: nvmeSMARTTimeout,
		address: uint64(uintptr(unsafe.Pointer(&log[0]))), addressLen: nvmeSMARTSize,
		// The number of dwords less one, and the page.
		dwords: [6]uint32{(nvmeSMARTSize/4-1)<<16 | nvmeSMARTPage},
	}
	status, err := ioctlResult(device, nvmeAdminCommand, unsafe.Pointer(&command))
	runtime.KeepAlive(log)
	if err != nil {
		return nil, os.NewSyscallError("ioctl NVME_IOCTL_ADMIN_CMD", err)
	}
	if status != 0 {
		return nil, &NVMeError{status}
	}
	return log, nil
}

// ioctlResult makes an ioctl that returns a number.
func ioctlResult(file Descriptor, request uint, arg unsafe.Pointer) (int, error) {
	return ignoringEINTR(func() (int, error) {
		result, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), uintptr(request), uintptr(arg))
		if errno != 0 {
			return 0, errno
		}
		return int(result), nil
	})
}
