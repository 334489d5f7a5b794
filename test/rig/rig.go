// Package rig is the test bench: real disks, a real kubelet directory and the
// real plugin, each of which a test gets for itself and which are gone after it.
//
// A package that uses it calls Main from TestMain, which fails the run where a
// mount, loop device, descriptor or child process is left.
package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Main runs the tests of a package and ends the process. It fails the run where
// the tests leave something on the machine: what is in their temporary directory, or
// built upon it, counts, so that tests of others may run at the same time.
//
// Also what a run leaves that was killed goes, which a janitor sees to.
func Main(m *testing.M) {
	if directory := os.Getenv(janitorVariable); directory != "" {
		os.Exit(beJanitor(directory))
	}
	os.Exit(run(m))
}

// temporary is the directory that Main has made. Empty: it does not run.
var temporary string

func run(m *testing.M) int {
	// The paths of sockets must be short (unix(7)).
	dir, err := os.MkdirTemp("", "rb")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv("TMPDIR", dir)
	temporary = dir
	if os.Geteuid() == 0 {
		end, err := startJanitor(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer end()
		if err := mountMemory(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer unmountMemory()
	}
	before := takeInventory(dir)
	code := m.Run()
	if os.Geteuid() == 0 && code == 0 {
		if left := leftovers(dir, before); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "FAIL: the tests left behind:\n  %s\n", strings.Join(left, "\n  "))
			return 1
		}
	}
	return code
}

// RequireRoot skips the test, loudly, unless it runs as root; in CI it fails it.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const message = "needs root: it makes loop devices and mounts; run the tests as root"
	if os.Getenv("CI") != "" {
		t.Fatal(message)
	}
	t.Skip("SKIPPED: " + message)
}

// Must fails the test where err is not nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// KubeletDir makes a kubelet directory: a shared mount, as on a node.
func KubeletDir(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	// Links in the way of the temporary directory are not what a test is about.
	dir, err := filepath.EvalSymlinks(t.TempDir())
	Must(t, err)
	Must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { UnmountAll(t, dir) })
	// Out of the peer group of the host's own mount, where that is shared: each
	// mount would be there twice.
	Must(t, unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
	Must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	return dir
}

// KubeletDirOnTmpfs makes a kubelet directory that no disk is under.
func KubeletDirOnTmpfs(t testing.TB) string {
	t.Helper()
	dir := StateDir(t)
	Must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	return dir
}

// StateDir makes a state directory on a tmpfs, as /run is on a node.
func StateDir(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	dir := t.TempDir()
	Must(t, unix.Mount("rawblock-test", dir, "tmpfs", 0, "mode=700"))
	t.Cleanup(func() { UnmountAll(t, dir) })
	return dir
}

// UnmountAll unmounts everything at and below path, lazily.
func UnmountAll(t testing.TB, path string) {
	t.Helper()
	for _, point := range slices.Backward(MountPoints(t)) {
		if point == path || strings.HasPrefix(point, path+"/") {
			Must(t, unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
		}
	}
}

// MountPoints returns the mount points of the mount table in the order in which
// they were made.
func MountPoints(t testing.TB) []string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	Must(t, err)
	var points []string
	for line := range strings.Lines(string(table)) {
		points = append(points, strings.Fields(line)[4])
	}
	return points
}

// inventory is what a test could leave, by its name, with how often it is there.
type inventory map[string]int

func takeInventory(dir string) inventory {
	found := inventory{}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(table)) {
			if point := strings.Fields(line)[4]; strings.HasPrefix(point, dir+"/") {
				found["mount "+point]++
			}
		}
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		if backing := backingFile(filepath.Base(filepath.Dir(filepath.Dir(file)))); strings.HasPrefix(backing, dir+"/") {
			found["loop device over "+backing]++
		}
	}
	descriptors, _ := filepath.Glob("/proc/self/fd/*")
	for _, descriptor := range descriptors {
		// Sockets, pipes and the like are the runtime's and the test binary's.
		if path, err := os.Readlink(descriptor); err == nil && filepath.IsAbs(path) && !strings.HasPrefix(path, "/proc/") {
			found["descriptor of "+path]++
		}
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	for _, pid := range strings.Fields(string(children)) {
		found["process "+pid]++
	}
	return found
}

// backingFile returns the file below a loop device, also where other loop devices
// or partitions are between them.
func backingFile(name string) string {
	for range 4 {
		content, err := os.ReadFile("/sys/block/" + name + "/loop/backing_file")
		if err != nil {
			return ""
		}
		backing := strings.TrimSpace(string(content))
		if !strings.HasPrefix(backing, "/dev/loop") {
			return backing
		}
		number, _, _ := strings.Cut(strings.TrimPrefix(backing, "/dev/loop"), "p")
		name = "loop" + number
	}
	return ""
}

// leftovers lists what is there now and was not before. The kernel and the
// runtime take a moment to clear up after a lazy unmount or a closed connection.
func leftovers(dir string, before inventory) []string {
	var left []string
	for range 50 {
		left = nil
		for name, count := range takeInventory(dir) {
			if extra := count - before[name]; extra > 0 {
				left = append(left, fmt.Sprintf("%s (%d more)", name, extra))
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	slices.Sort(left)
	return left
}

// Eventually repeats what takes the machine its time, or what others, such as udev, may
// be in the way of for a moment, until it has no error.
func Eventually(t testing.TB, what func() error) {
	t.Helper()
	// What works never comes near to this: a guest that is emulated beside others is slow.
	const limit = 3 * time.Minute
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = what(); err == nil {
			return
		}
	}
	t.Fatal(err)
}
