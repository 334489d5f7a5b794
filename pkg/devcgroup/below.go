package devcgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// In cgroup v1 a cgroup has the rules that the one above had when it was made, and its own
// from then on. What is granted above must be written into each one below that was there
// already. In v2 the program above runs for those below too.

// allowBelow lets the cgroups below a cgroup, whose rules were those of above before, open
// the device. One that lacks any of these has been restricted on purpose, as a container in
// a container is, and is left alone with all below it. Nothing is written down for them: before the grant none
// of them can have had what the one above lacked.
func allowBelow(parent linux.Descriptor, above []rule, number linux.DeviceNumber, access Access) error {
	return eachBelow(parent, func(child *os.File) error {
		list, err := rules{ledger{file: child}}.lines()
		if err != nil || isRestricted(list, above, number) {
			return err
		}
		if err := linux.WriteFileAt(child, "devices.allow", line(number, access)); err != nil {
			return fmt.Errorf("let the container open device %s: %w", number, err)
		}
		return allowBelow(child, list, number, access)
	})
}

// isRestricted reports whether a list lacks a rule of the one above, other than for the
// device.
func isRestricted(list, above []rule, number linux.DeviceNumber) bool {
	return slices.ContainsFunc(above, func(one rule) bool { return !one.isOf(number) && !slices.Contains(list, one) })
}

// revokeBelow takes access to the device from all cgroups below a cgroup, the lowest first.
func revokeBelow(parent linux.Descriptor, number linux.DeviceNumber, added Access) error {
	return eachBelow(parent, func(child *os.File) error {
		if err := revokeBelow(child, number, added); err != nil {
			return err
		}
		if err := linux.WriteFileAt(child, "devices.deny", line(number, added)); err != nil {
			return fmt.Errorf("keep the container from device %s: %w", number, err)
		}
		return nil
	})
}

// eachBelow calls do for each cgroup right below a cgroup. One that is removed meanwhile is
// passed over.
func eachBelow(parent linux.Descriptor, do func(child *os.File) error) error {
	children, err := linux.Directories(parent)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the cgroups below %s: %w", parent.Name(), err)
	}
	var failed []error
	for _, child := range children {
		if err := do(child); err != nil && !isGone(err) {
			failed = append(failed, err)
		}
		child.Close() //nolint:errcheck,gosec // Nothing was written.
	}
	return errors.Join(failed...)
}
