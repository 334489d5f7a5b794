package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lock waits for the lock on a file.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { file.Close() }, nil
}

// places is how many guests run at one time on a machine: each takes less than half a
// processor, and memory of its own.
const places = 4

// takePlace waits until fewer than that run. Who came first is first.
func takePlace() (leave func(), err error) {
	next, err := lock(filepath.Join(os.TempDir(), "rawblock-vm.next.lock"))
	if err != nil {
		return nil, err
	}
	defer next()
	for {
		for number := range places {
			file, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprintf("rawblock-vm.%d.lock", number)), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				return nil, err
			}
			if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
				return func() { file.Close() }, nil
			}
			file.Close()
		}
		time.Sleep(100 * time.Millisecond)
	}
}
