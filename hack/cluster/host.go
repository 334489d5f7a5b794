package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// This is what a cluster has on the host beside its directory and its bridge.

// cgroupName is the name of the cgroup, in each hierarchy, that has one for each node.
const cgroupName = "rawblock-cluster"

// cgroup is where the node's pods are.
func (m machine) cgroup() string { return cgroupName + "/" + m.name }

// cgroupRoot is where cgroups are mounted: version 2 itself, or below it the
// hierarchies of version 1.
const cgroupRoot = "/sys/fs/cgroup"

func isVersion2() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

func hierarchies() ([]string, error) {
	if isVersion2() {
		return []string{cgroupRoot}, nil
	}
	return filepath.Glob(cgroupRoot + "/*")
}

// makeCgroup makes the node's cgroup: kubelet refuses one that is not there.
func (m machine) makeCgroup() error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	inherit := inheritProcessors
	if isVersion2() {
		inherit = inheritControllers
	}
	for _, root := range roots {
		for _, name := range []string{cgroupName, m.cgroup()} {
			dir := filepath.Join(root, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := inherit(dir); err != nil {
				return fmt.Errorf("set up %s: %w", dir, err)
			}
		}
	}
	return nil
}

// inheritProcessors gives a cgroup of version 1 what it needs before a process can
// be in it: the processors and the memory nodes of its parent.
func inheritProcessors(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(own)) != "" {
			continue // Another hierarchy, or done.
		}
		parents, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), parents, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// inheritControllers lets a cgroup of version 2 have all controllers of its parent.
func inheritControllers(dir string) error {
	parent := filepath.Dir(dir)
	controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes a cgroup from all hierarchies, and waits until the last
// process has left it.
func removeCgroups(ctx context.Context, name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		top := filepath.Join(root, name)
		if err := until(ctx, top+" is removed", 30*time.Second, func() error { return removeCgroup(top) }); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroup removes the directories of a cgroup, the lowest first. Its files cannot
// be removed, and need not be.
func removeCgroup(dir string) error {
	children, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, child := range children {
		if child.IsDir() {
			if err := removeCgroup(filepath.Join(dir, child.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// sysctls are what kubelet sets, for the whole machine (setupKernelTunables in
// pkg/kubelet/cm/container_manager_linux.go).
var sysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

func (c *cluster) sysctlFile() string { return c.path("sysctls.json") }

// keepSysctls writes down what the sysctls are before kubelet runs.
func (c *cluster) keepSysctls() error {
	if _, err := os.Stat(c.sysctlFile()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	values := object{}
	for _, name := range sysctls {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			return err
		}
		values[name] = strings.TrimSpace(string(value))
	}
	return writeObject(c.sysctlFile(), values)
}

// restoreSysctls sets them as they were.
func (c *cluster) restoreSysctls() error {
	content, err := os.ReadFile(c.sysctlFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var values map[string]string
	if err := json.Unmarshal(content, &values); err != nil {
		return fmt.Errorf("%s: %w", c.sysctlFile(), err)
	}
	var errs []error
	for name, value := range values {
		errs = append(errs, os.WriteFile("/proc/sys/"+name, []byte(value), 0o600))
	}
	return errors.Join(errs...)
}
