// Package systemd tests grants in the units of a real systemd. It runs in namespaces
// of its own, since the machine's systemd is the machine's, or there is none. What
// the plugin would do there is done by the test binary, which runs in them as well.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// asPlugin has the test binary do one thing in the machine, and end.
const asPlugin = "RAWBLOCK_TEST_AS_PLUGIN"

func TestMain(m *testing.M) {
	what := os.Getenv(asPlugin)
	if what == "" {
		rig.Main(m)
	}
	if err := do(what, os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// do does one thing in the cgroup at a path, with a device.
func do(what, path, device, with string) error {
	number, err := linux.ParseDeviceNumber(device)
	if err != nil {
		return err
	}
	hierarchies, err := devcgroup.FindHierarchies("test")
	if err != nil {
		return err
	}
	dir := filepath.Join(hierarchies.Unified, path)
	switch what {
	case "open":
		return open(dir, number, with)
	case "programs":
		return printPrograms(dir)
	case "attributes":
		return printAttributes(dir)
	case "attach":
		return attach(dir, with)
	case "replace":
		return replace(dir)
	}
	cgroup, err := openCgroup(hierarchies, dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	ctx := context.Background()
	switch what {
	case "allow":
		access, err := devcgroup.ParseAccess(with)
		if err != nil {
			return err
		}
		return cgroup.Allow(ctx, number, access)
	case "revoke":
		return cgroup.Revoke(ctx, number)
	case "grants":
		grants, err := cgroup.Grants()
		fmt.Fprintln(os.Stdout, grants)
		return err
	}
	return errors.New("unknown: " + what)
}

// openCgroup opens the cgroup of the first process in a directory.
func openCgroup(hierarchies devcgroup.Hierarchies, dir string) (*devcgroup.Cgroup, error) {
	processes, err := os.ReadFile(dir + "/cgroup.procs")
	if err != nil {
		return nil, err
	}
	var pid int
	if _, err := fmt.Sscan(string(processes), &pid); err != nil {
		return nil, fmt.Errorf("no process in %s: %w", dir, err)
	}
	return devcgroup.Open(hierarchies, pid, "")
}

// open opens a node of the device as a process of the cgroup.
func open(dir string, number linux.DeviceNumber, access string) error {
	node := "/tmp/node-" + number.String()
	// Before it joins: nothing lets it make nodes afterwards.
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(number.Major, number.Minor))); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := os.WriteFile(dir+"/cgroup.procs", []byte("0"), 0); err != nil {
		return err
	}
	flags := map[string]int{"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
	file, err := os.OpenFile(node, flags[access], 0)
	if err != nil {
		return err
	}
	return file.Close()
}

// printAttributes prints the names of the attributes of a cgroup that are the plugin's.
func printAttributes(path string) error {
	names, err := linux.Attributes(path)
	isOther := func(name string) bool { return !strings.HasPrefix(name, "trusted.rawblock") }
	fmt.Fprintln(os.Stdout, slices.DeleteFunc(names, isOther))
	return err
}

// printPrograms prints the names and tags of the programs of a cgroup.
func printPrograms(path string) error {
	var all []string
	err := eachProgram(path, func(_ *os.File, program *linux.Program) error {
		all = append(all, fmt.Sprintf("%s %x", program.Name, program.Tag))
		return nil
	})
	slices.Sort(all)
	fmt.Fprintln(os.Stdout, strings.Join(all, ", "))
	return err
}

// replace puts a program that lets everything pass in the place of each.
func replace(path string) error {
	return eachProgram(path, func(dir *os.File, program *linux.Program) error {
		return attachTo(dir, program.Name, 1, program)
	})
}

func eachProgram(path string, do func(*os.File, *linux.Program) error) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	ids, _, err := linux.DeviceProgramIDs(dir, false)
	if err != nil {
		return err
	}
	for _, id := range ids {
		program, err := linux.OpenProgram(id)
		if err != nil {
			return err
		}
		err = do(dir, program)
		program.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// attach attaches a program to a cgroup beside those that there are, which lets
// nothing pass.
func attach(path, name string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return attachTo(dir, name, 0, nil)
}

// attachTo attaches a program that always answers the same, in the place of another
// one or beside those that there are.
func attachTo(dir *os.File, name string, answer int32, old *linux.Program) error {
	program, err := linux.LoadDeviceProgram(name, true, []linux.Instruction{{Code: 0xb7, Immediate: answer}, {Code: 0x95}})
	if err != nil {
		return err
	}
	defer program.Close()
	return linux.AttachDeviceProgram(dir, program, old, linux.AttachMulti)
}
