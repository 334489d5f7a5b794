package devcgroup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// unit is a unit of the systemd that runs the machine. It makes the device program
// of its cgroup by what its DeviceAllow= says.
type unit struct {
	conn *dbus.Conn
	name string
	// policy is its DevicePolicy=: auto, closed or strict.
	policy string
	// rules are what it allows.
	rules []deviceRule
}

// deviceRule is an entry of DeviceAllow= of a unit (systemd.resource-control(5)), as
// it goes over D-Bus.
type deviceRule struct{ Path, Access string }

// nodeOf is how DeviceAllow= names a block device by its number, without looking for
// a node.
func nodeOf(number linux.DeviceNumber) string { return "/dev/block/" + number.String() }

// unitOf returns the name and the kind of the unit that the path of a cgroup may be
// that of. systemd puts a _ before names that the kernel uses itself (cg_escape in
// src/basic/cgroup-util.c).
func unitOf(path string) (name, kind string, ok bool) {
	name = strings.TrimPrefix(filepath.Base(path), "_")
	kind, ok = map[string]string{".scope": "Scope", ".service": "Service"}[filepath.Ext(name)]
	return name, kind, ok
}

// openUnit returns the unit whose cgroup has the path, nil where the cgroup is no
// unit's: that of a systemd in a container has names that the host's uses as well.
// The caller closes it. Errors: volume.ErrPrecondition where systemd cannot be
// reached.
func openUnit(ctx context.Context, path string) (*unit, error) {
	name, kind, ok := unitOf(path)
	if !ok {
		return nil, nil //nolint:nilnil // No unit is an answer.
	}
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		// Not wrapped: that there is no socket must not be taken for that there is no cgroup.
		return nil, fmt.Errorf("%w: systemd, which decides on the container's devices, cannot be reached; in a container, mount the host's /run/dbus/system_bus_socket or /run/systemd/private: %v", volume.ErrPrecondition, err) //nolint:errorlint // As said above.
	}
	found := &unit{conn: conn, name: name}
	isOf, err := found.read(ctx, kind, path)
	if err != nil || !isOf {
		conn.Close()
		return nil, err
	}
	return found, nil
}

// read asks systemd for the rules of the unit, and whether the cgroup at the path is
// its.
func (u *unit) read(ctx context.Context, kind, path string) (isOf bool, err error) {
	properties, err := u.conn.GetUnitTypePropertiesContext(ctx, u.name, kind)
	if err != nil {
		return false, fmt.Errorf("ask systemd what unit %s may open: %w", u.name, err)
	}
	if properties["ControlGroup"] != path {
		return false, nil
	}
	u.policy, _ = properties["DevicePolicy"].(string) // What is missing is not auto.
	if u.rules, err = parseDeviceAllow(properties["DeviceAllow"]); err != nil {
		return false, fmt.Errorf("ask systemd what unit %s may open: %w", u.name, err)
	}
	return true, nil
}

// allowed returns what the unit allows of the device by its number.
func (u *unit) allowed(number linux.DeviceNumber) (Access, error) {
	for _, rule := range u.rules {
		if rule.Path == nodeOf(number) {
			return ParseAccess(rule.Access)
		}
	}
	return 0, nil
}

// allow has the unit allow of the device the access and nothing else, until the
// machine is restarted. When it returns, systemd has attached another program.
func (u *unit) allow(ctx context.Context, number linux.DeviceNumber, access Access) error {
	// What is not in a list stays as it is, and an empty list forgets all that there
	// is (bus_cgroup_set_property in src/core/dbus-cgroup.c). So only taking a rule
	// away has a moment, between reading the list and setting it, in which others
	// must not change the unit.
	lists := [][]deviceRule{{{nodeOf(number), access.String()}}}
	if access == 0 {
		others := slices.DeleteFunc(slices.Clone(u.rules), func(rule deviceRule) bool { return rule.Path == nodeOf(number) })
		slices.Reverse(others) // Each is put before those that there are.
		lists = [][]deviceRule{{}, others}
	}
	var properties []dbus.Property
	for _, list := range lists {
		properties = append(properties, dbus.Property{Name: "DeviceAllow", Value: godbus.MakeVariant(list)})
	}
	if err := u.conn.SetUnitPropertiesContext(ctx, u.name, true, properties...); err != nil {
		return fmt.Errorf("have systemd let unit %s open device %s with access %q: %w", u.name, number, access, err)
	}
	return nil
}

// widen has the unit allow the device. What it allowed by itself is written down
// first.
func (u *unit) widen(ctx context.Context, ledger ledger, number linux.DeviceNumber, access Access) error {
	if u.policy == "auto" && len(u.rules) == 0 {
		return nil // It allows everything, until it has a rule.
	}
	own, err := u.allowed(number)
	if err != nil {
		return fmt.Errorf("what unit %s may open: %w", u.name, err)
	}
	if own&access == access {
		return nil
	}
	if err := ledger.setUnit(number, own); err != nil {
		return err
	}
	return u.allow(ctx, number, own|access)
}

// restoreUnit has the unit of a cgroup allow of the device what it allowed by itself,
// where it was told to allow more. Errors: volume.ErrPrecondition where systemd
// cannot be reached.
func restoreUnit(ctx context.Context, ledger ledger, number linux.DeviceNumber) error {
	own, told, err := ledger.ofUnit(number)
	if err != nil || !told {
		return err
	}
	unit, err := openUnit(ctx, ledger.path)
	if err != nil {
		return fmt.Errorf("have systemd keep %s from device %s: %w", ledger.file.Name(), number, err)
	}
	if unit != nil {
		defer unit.conn.Close()
		if err := unit.allow(ctx, number, own); err != nil {
			return err
		}
	}
	return ledger.removeUnit(number)
}

// parseDeviceAllow reads the value a(ss) of the property.
func parseDeviceAllow(value any) ([]deviceRule, error) {
	entries, ok := value.([][]any)
	if !ok {
		return nil, errors.New("DeviceAllow is not a list")
	}
	var rules []deviceRule
	for _, entry := range entries {
		if len(entry) != 2 {
			return nil, fmt.Errorf("DeviceAllow has the entry %v", entry)
		}
		path, ok1 := entry[0].(string)
		access, ok2 := entry[1].(string)
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("DeviceAllow has the entry %v", entry)
		}
		rules = append(rules, deviceRule{path, access})
	}
	return rules, nil
}
