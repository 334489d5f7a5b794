package devcgroup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// deviceRule is an entry of DeviceAllow= of a unit (systemd.resource-control(5)), as
// it goes over D-Bus.
type deviceRule struct{ Path, Access string }

// unitOf returns the unit that a cgroup is of.
func unitOf(path string) (unit string, ok bool) {
	for ; path != "/" && path != "."; path = filepath.Dir(path) {
		name := filepath.Base(path)
		if strings.HasSuffix(name, ".scope") || strings.HasSuffix(name, ".service") {
			return name, true
		}
	}
	return "", false
}

// nodeOf is how DeviceAllow= names a block device by its number.
func nodeOf(number linux.DeviceNumber) string { return "/dev/block/" + number.String() }

// allowInUnit has the unit of a cgroup allow the device until the machine is
// restarted, or with access 0 not any more, and reports whether there is a unit, and
// systemd, to be asked.
func allowInUnit(ctx context.Context, path string, number linux.DeviceNumber, access Access) (done bool, err error) {
	unit, ok := unitOf(path)
	if !ok {
		return false, nil
	}
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return false, nil //nolint:nilerr // Without systemd on the bus, there is nobody to be asked.
	}
	defer conn.Close()
	kind := strings.ToUpper(filepath.Ext(unit)[1:2]) + filepath.Ext(unit)[2:]
	property, err := conn.GetUnitTypePropertyContext(ctx, unit, kind, "DeviceAllow")
	if err != nil {
		return false, fmt.Errorf("ask systemd what unit %s may open: %w", unit, err)
	}
	before, err := parseDeviceAllow(property.Value)
	if err != nil {
		return false, fmt.Errorf("ask systemd what unit %s may open: %w", unit, err)
	}
	// An empty list forgets what there is, any other is added (bus-unit-util.c and
	// dbus-cgroup.c in systemd).
	properties := []dbus.Property{
		{Name: "DeviceAllow", Value: godbus.MakeVariant([]deviceRule{})},
		{Name: "DeviceAllow", Value: godbus.MakeVariant(changeRules(before, number, access))},
	}
	if err := conn.SetUnitPropertiesContext(ctx, unit, true, properties...); err != nil {
		return false, fmt.Errorf("have systemd let unit %s open device %s: %w", unit, number, err)
	}
	return true, nil
}

// changeRules returns the rules with that of the device, or with access 0 without.
func changeRules(rules []deviceRule, number linux.DeviceNumber, access Access) []deviceRule {
	var changed []deviceRule
	for _, rule := range rules {
		if rule.Path != nodeOf(number) {
			changed = append(changed, rule)
		}
	}
	if access != 0 {
		changed = append(changed, deviceRule{nodeOf(number), access.String()})
	}
	return changed
}

// parseDeviceAllow reads the value a(ss) of the property.
func parseDeviceAllow(value godbus.Variant) ([]deviceRule, error) {
	entries, ok := value.Value().([][]any)
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
