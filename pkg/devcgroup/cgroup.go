package devcgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Cgroup is the device cgroup of a container: one directory of each hierarchy, or
// more, where programs in the container made cgroups of their own. The directories are
// held open, so that no other container's are mistaken for them.
//
// Its methods must not be called concurrently with those of another Cgroup of the
// same container.
type Cgroup struct {
	dirs []dir
}

// dir is a cgroup of one hierarchy.
type dir interface {
	// grants is what was granted in it.
	grants() ledger
	// allows reports whether processes may open the device for all of the access.
	allows(number linux.DeviceNumber, access Access) (bool, error)
	// allow adds the access that is missing, and writes down what it adds first.
	allow(ctx context.Context, number linux.DeviceNumber, access Access) error
	// revoke takes away the access that was written down as added.
	revoke(ctx context.Context, number linux.DeviceNumber, added Access) error
}

// Open returns the device cgroup of the container with the ID whose first process
// has the number; the ID may be empty. The caller sees to it that the process does
// not end meanwhile, and closes the cgroup.
//
// Errors: volume.ErrNotFound where the process has ended; volume.ErrPrecondition
// where its cgroup cannot be seen.
func Open(hierarchies Hierarchies, pid int, containerID string) (*Cgroup, error) {
	if hierarchies.Devices == "" && hierarchies.Unified == "" {
		return nil, fmt.Errorf("%w: neither cgroup2 nor the devices controller of cgroup v1 is mounted whole where the plugin runs; in a container, mount the host's /sys/fs/cgroup", volume.ErrPrecondition)
	}
	paths, err := readPaths(pid)
	if err != nil {
		return nil, err
	}
	cgroup := &Cgroup{}
	if hierarchies.Devices != "" {
		err = cgroup.open(hierarchies.Owner, hierarchies.Devices, chain(paths.devices, containerID), newRules)
	}
	if err == nil && hierarchies.Unified != "" {
		err = cgroup.open(hierarchies.Owner, hierarchies.Unified, chain(paths.unified, containerID), newPrograms)
	}
	if err != nil {
		cgroup.Close()
		return nil, err
	}
	return cgroup, nil
}

func (c *Cgroup) open(owner, root string, paths []string, make func(ledger) dir) error {
	for _, path := range paths {
		file, err := os.Open(filepath.Join(root, path))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: the cgroup %s is not in %s, which must be the host's, or the container has ended", volume.ErrNotFound, path, root)
		}
		if err != nil {
			return fmt.Errorf("open the cgroup of the container: %w", err)
		}
		c.dirs = append(c.dirs, make(ledger{file, path, owner}))
	}
	return nil
}

// Close closes the cgroup.
func (c *Cgroup) Close() {
	for _, dir := range c.dirs {
		dir.grants().file.Close() //nolint:errcheck,gosec // Nothing was written.
	}
}

// String names the directories, for messages.
func (c *Cgroup) String() string {
	if len(c.dirs) == 0 {
		return "no cgroup"
	}
	names := make([]string, len(c.dirs))
	for i, dir := range c.dirs {
		names[i] = dir.grants().file.Name()
	}
	return strings.Join(names, ", ")
}

// Covers reports whether all directories of another are among those of the cgroup.
func (c *Cgroup) Covers(other *Cgroup) bool {
	return !slices.ContainsFunc(other.dirs, func(wanted dir) bool {
		return !slices.ContainsFunc(c.dirs, func(dir dir) bool {
			return dir.grants().file.Name() == wanted.grants().file.Name()
		})
	})
}

// Allows reports whether the container may open the block device for all of the
// access at once, whoever let it.
func (c *Cgroup) Allows(number linux.DeviceNumber, access Access) (bool, error) {
	for _, dir := range c.dirs {
		allowed, err := dir.allows(number, access)
		if err != nil || !allowed {
			return false, err
		}
	}
	return true, nil
}

// Allow lets the container open the block device, and sees that it can. It adds
// only what is missing, nothing where nothing is, and may be repeated. Where it
// fails, nothing is granted of the device any more.
//
// Errors: volume.ErrPrecondition where a cgroup above the container's does not
// allow it, or the container's programs cannot be extended.
func (c *Cgroup) Allow(ctx context.Context, number linux.DeviceNumber, access Access) error {
	allowed, err := c.Allows(number, access)
	if err != nil {
		return err
	}
	if granted, err := c.hasGranted(number); err != nil || allowed && !granted {
		return err
	}
	for _, dir := range c.dirs {
		if err := dir.allow(ctx, number, access); err != nil {
			return errors.Join(err, c.Revoke(context.WithoutCancel(ctx), number))
		}
	}
	if allowed, err = c.Allows(number, access); err == nil && !allowed {
		err = fmt.Errorf("%w: the container may not open device %s though it was granted in %s: a cgroup above does not allow it; see DeviceAllow= of the slices that the container is in", volume.ErrPrecondition, number, c)
	}
	if err != nil {
		return errors.Join(err, c.Revoke(context.WithoutCancel(ctx), number))
	}
	return nil
}

// hasGranted reports whether anything was granted of the device: the cgroups below may
// lack it then, though the container's own has it.
func (c *Cgroup) hasGranted(number linux.DeviceNumber) (bool, error) {
	for _, dir := range c.dirs {
		if added, err := dir.grants().read(number); err != nil || added != 0 {
			return added != 0, err
		}
	}
	return false, nil
}

// Revoke takes away what Allow added for the device, and nothing else. It may be
// repeated.
func (c *Cgroup) Revoke(ctx context.Context, number linux.DeviceNumber) error {
	var failed []error
	for _, dir := range slices.Backward(c.dirs) {
		failed = append(failed, revoke(ctx, dir, number))
	}
	return errors.Join(failed...)
}

func revoke(ctx context.Context, dir dir, number linux.DeviceNumber) error {
	added, err := dir.grants().read(number)
	if err != nil || added == 0 {
		return err
	}
	if err := dir.revoke(ctx, number, added); err != nil && !isGone(err) {
		return err
	}
	return dir.grants().remove(number)
}

// Grants returns what was granted and not revoked, in no order.
func (c *Cgroup) Grants() ([]Grant, error) {
	found := map[linux.DeviceNumber]Access{}
	for _, dir := range c.dirs {
		grants, err := dir.grants().list()
		if err != nil {
			return nil, err
		}
		for _, grant := range grants {
			found[grant.Number] |= grant.Access
		}
	}
	var grants []Grant
	for number, access := range found {
		grants = append(grants, Grant{number, access})
	}
	return grants, nil
}

// Granted returns every directory in which something was granted and not revoked, each
// as a Cgroup of its own; the caller closes them. It looks at every cgroup of the
// machine.
func Granted(hierarchies Hierarchies) ([]*Cgroup, error) {
	var found []*Cgroup
	for root, make := range map[string]func(ledger) dir{hierarchies.Devices: newRules, hierarchies.Unified: newPrograms} {
		if root == "" {
			continue
		}
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if isGone(err) {
				return nil
			}
			if err != nil || !entry.IsDir() {
				return err
			}
			names, err := attributes(path)
			if err != nil || len(names) == 0 {
				return err
			}
			cgroup := &Cgroup{}
			if err := cgroup.open(hierarchies.Owner, root, []string{strings.TrimPrefix(path, root)}, make); err != nil && !errors.Is(err, volume.ErrNotFound) {
				return err
			}
			found = append(found, cgroup)
			return nil
		})
		if err != nil {
			for _, cgroup := range found {
				cgroup.Close()
			}
			return nil, fmt.Errorf("look for what was granted: %w", err)
		}
	}
	return found, nil
}
