package linux

import (
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The size of the argument is part of the request's number (ioctl(2)). The command
// itself is tried in a guest machine (test/vm/health).
func TestNVMeCommandHasTheKernelsSize(t *testing.T) {
	if size := unsafe.Sizeof(nvmePassthru{}); size != nvmeAdminCommand>>16&0x3fff {
		t.Errorf("the argument has %d bytes", size)
	}
}

func TestNVMeLogOfNoController(t *testing.T) {
	file, err := OpenFile("/dev/null", false)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := NVMeSMARTLog(file); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("got %v", err)
	}
}
