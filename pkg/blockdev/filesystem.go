package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// FilesystemErrors returns how many errors the kernel has found in the filesystem that is
// mounted from a device, until it is checked: 0 where the kernel does not count them,
// which it does for ext4 alone (errors_count in fs/ext4/sysfs.c).
//
// An ext4 that refuses all writes after an error need not say that it is read-only: since
// Linux 6.12, and stable versions of kernels before it, the flag is not set any more.
func (s Sysfs) FilesystemErrors(number linux.DeviceNumber) (uint64, error) {
	device, err := os.Readlink(s.device(number))
	var count uint64
	if err == nil {
		count, err = readNumber(s.path("fs", "ext4", filepath.Base(device)), "errors_count")
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("errors of the filesystem on block device %s: %w", number, err)
	}
	return count, nil
}
