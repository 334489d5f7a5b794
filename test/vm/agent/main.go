// The agent is the first program of a guest: it loads what is needed to see the
// root disk, goes over to it, and then runs what the host tells it to.
//
// It is /init of the initial RAM disk. Once the root disk is mounted it starts
// systemd, which starts it again as a service, or stays what it is.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// self is where the agent is once the root disk is mounted.
	self = "/run/agent"
	// rootDisk is the disk that the host boots from.
	rootDisk = "/dev/vda"
)

func main() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "serve":
		err = serve()
	case len(os.Args) > 1 && os.Args[1] == "first":
		err = runFirst()
	default:
		err = enterRoot()
	}
	fmt.Fprintln(os.Stderr, "agent:", err)
	if os.Getpid() == 1 {
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) //nolint:errcheck // The host waits with a limit.
	}
	os.Exit(1)
}

// enterRoot mounts the root disk and goes on there.
func enterRoot() error {
	for _, m := range []mount{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := m.make(); err != nil {
			return err
		}
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := waitFor(rootDisk); err != nil {
		return err
	}
	if err := unix.Mount(rootDisk, "/root", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", rootDisk, err)
	}
	if err := (mount{"tmpfs", "/root/run"}).make(); err != nil {
		return err
	}
	program, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	if err := os.WriteFile("/root"+self, program, 0o755); err != nil {
		return err
	}
	for _, path := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(path, "/root"+path, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", path, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount("/root", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if has("init=systemd") {
		return unix.Exec("/lib/systemd/systemd", []string{"systemd"}, environment)
	}
	return unix.Exec(self, []string{self, "first"}, environment)
}

// has reports whether the kernel was started with a word for the agent.
func has(word string) bool {
	line, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(line)), "guest."+word)
}

var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "CI=true"}

// mount is a file system of the kernel and where it belongs.
type mount struct{ kind, path string }

func (m mount) make() error {
	if err := os.MkdirAll(m.path, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.kind, m.path, m.kind, 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", m.path, err)
	}
	return nil
}

// loadModules loads the kernel modules of a directory in the order of their names.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		module, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(module.Fd()), "", 0)
		module.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", entry.Name(), err)
		}
	}
	return nil
}

func waitFor(path string) error {
	for range 6000 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("%s does not appear", path)
}
