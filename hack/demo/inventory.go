package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// inventory is what there is of a demo on this machine.
type inventory []struct {
	kind  string
	items []string
}

// takeInventory finds whatever has the demo's name in it, and views of its devices.
func takeInventory(name string) inventory {
	has := func(text string) bool { return strings.Contains(text, name) }
	devices := loops(has)
	views := loops(func(backing string) bool { return slices.Contains(devices, strings.TrimPrefix(backing, "/dev/")) })
	return inventory{
		{"mounts", mounts(has)},
		{"loop devices", append(devices, views...)},
		{"processes", processes(has)},
		{"cgroups", append(glob("/sys/fs/cgroup/"+name+"*"), glob("/sys/fs/cgroup/*/"+name+"*")...)},
		{"volumes", glob(filepath.Join(os.TempDir(), name, "files/volumes/*"))},
		{"snapshots", glob(filepath.Join(os.TempDir(), name, "files/snapshots/*"))},
		{"files", glob(filepath.Join(os.TempDir(), name+"*"), filepath.Join(os.TempDir(), name, "*"))},
	}
}

// compare shows what was there and what is there now, which is an error unless
// it is nothing.
func (d *demo) compare(whileItRan inventory) error {
	d.next("Count what has the demo's name: while it ran, and now.")
	d.saw("%13s then now", "")
	var errs []error
	for i, now := range takeInventory(filepath.Base(d.dir)) {
		d.saw("%-13s %4d %3d", now.kind, len(whileItRan[i].items), len(now.items))
		for _, item := range now.items {
			errs = append(errs, fmt.Errorf("left behind among the %s: %s", now.kind, item))
		}
	}
	return errors.Join(errs...)
}

func mounts(is func(line string) bool) (found []string) {
	for line := range strings.Lines(content("/proc/self/mountinfo")) {
		if is(line) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

func loops(is func(backing string) bool) (found []string) {
	for _, file := range glob("/sys/block/loop*/loop/backing_file") {
		if is(strings.TrimSpace(content(file))) {
			found = append(found, strings.Split(file, "/")[3])
		}
	}
	return found
}

// processes finds a process by its command line, or by the cgroup of its
// container. One that has ended, and was not waited for yet, has no command line.
func processes(is func(text string) bool) (found []string) {
	for _, dir := range glob("/proc/[0-9]*") {
		commandLine := content(dir + "/cmdline")
		if is(commandLine) || commandLine != "" && is(content(dir+"/cgroup")) {
			found = append(found, filepath.Base(dir))
		}
	}
	return found
}

// content is that of a file, and nothing where it has gone meanwhile.
func content(path string) string {
	data, _ := os.ReadFile(path) //nolint:errcheck // See above.
	return string(data)
}

func glob(patterns ...string) (found []string) {
	for _, pattern := range patterns {
		paths, _ := filepath.Glob(pattern) // The patterns are well-formed.
		found = append(found, paths...)
	}
	return found
}
