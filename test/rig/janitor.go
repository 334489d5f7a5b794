package rig

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// A run that is killed, or takes longer than go test allows, cleans up nothing. So Main
// starts this program once more, as its janitor: when Main's process has ended, however,
// the janitor detaches the loop devices and mounts that are left of its directory.

// janitorVariable has the directory of the run for which the program is the janitor.
const janitorVariable = "RAWBLOCK_TEST_JANITOR"

// startJanitor starts the janitor of a directory. end has it look, and waits for it.
func startJanitor(directory string) (end func(), err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the janitor: %w", err)
	}
	defer read.Close()
	janitor := exec.Command("/proc/self/exe") //nolint:noctx // It outlives the run.
	janitor.Env = append(os.Environ(), janitorVariable+"="+directory)
	janitor.Stdin = read
	// What ends the run must not end it.
	janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := janitor.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("start the janitor: %w", err)
	}
	return func() {
		write.Close()
		if err := janitor.Wait(); err != nil {
			fmt.Fprintf(os.Stderr, "the janitor of %s: %v\n", directory, err)
		}
	}, nil
}

// beJanitor waits until the run has ended, and clears its directory.
func beJanitor(directory string) int {
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // It ends with the run, whatever it says.
	// Before the mounts: then the kernel tells the paths of what loop devices show.
	for range 4 { // Those upon others first go when these have gone.
		detachBelow(directory)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 1
	}
	for _, line := range slices.Backward(strings.Split(strings.TrimSpace(string(table)), "\n")) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, directory+"/") {
			unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) //nolint:errcheck // The next run's checks tell.
		}
	}
	if os.RemoveAll(directory) != nil {
		return 1
	}
	return 0
}

func detachBelow(directory string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		if !strings.HasPrefix(backingFile(name), directory+"/") {
			continue
		}
		if loop, err := os.Open("/dev/" + name); err == nil {
			// Its number can be another's by now. While it is open here, it stays what it is.
			if strings.HasPrefix(backingFile(name), directory+"/") {
				linux.ClearLoop(loop) //nolint:errcheck // It may have gone meanwhile.
			}
			loop.Close()
		}
	}
}
