package devcgroup

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// rules is a cgroup of cgroup v1's devices controller: its list has a rule in each
// line, and what is in none is denied, unless everything is allowed
// (security/device_cgroup.c in the kernel).
type rules struct{ ledger }

func newRules(ledger ledger) dir { return rules{ledger} }

func (r rules) grants() ledger { return r.ledger }

// rule is a line of devices.list.
type rule struct {
	// kind is a (all), b (block) or c (character).
	kind         byte
	major, minor wildcard
	access       Access
}

// wildcard is a number, or any.
type wildcard struct {
	any    bool
	number uint32
}

func (w wildcard) matches(number uint32) bool { return w.any || w.number == number }

// covers reports whether the rule is for the block device.
func (r rule) covers(number linux.DeviceNumber) bool {
	return r.kind == 'a' || r.kind == 'b' && r.major.matches(number.Major) && r.minor.matches(number.Minor)
}

// isOf reports whether the rule is for the block device and no other.
func (r rule) isOf(number linux.DeviceNumber) bool {
	return r.kind == 'b' && r.major == wildcard{number: number.Major} && r.minor == wildcard{number: number.Minor}
}

// parseRules reads devices.list: lines such as "b 8:16 rw" and "c *:* m".
func parseRules(text string) ([]rule, error) {
	var rules []rule
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 || len(fields[0]) != 1 || !strings.Contains("abc", fields[0]) {
			return nil, fmt.Errorf("malformed rule %q", line)
		}
		major, minor, _ := strings.Cut(fields[1], ":")
		one := rule{kind: fields[0][0]}
		var err error
		if one.major, err = parseWildcard(major); err != nil {
			return nil, fmt.Errorf("malformed rule %q: %w", line, err)
		}
		if one.minor, err = parseWildcard(minor); err != nil {
			return nil, fmt.Errorf("malformed rule %q: %w", line, err)
		}
		if one.access, err = ParseAccess(fields[2]); err != nil {
			return nil, fmt.Errorf("malformed rule %q: %w", line, err)
		}
		rules = append(rules, one)
	}
	return rules, nil
}

func parseWildcard(text string) (wildcard, error) {
	if text == "*" {
		return wildcard{any: true}, nil
	}
	number, err := strconv.ParseUint(text, 10, 32)
	return wildcard{number: uint32(number)}, err
}

func (r rules) lines() ([]rule, error) {
	text, err := linux.ReadFileAt(r.file, "devices.list")
	if err != nil {
		return nil, fmt.Errorf("read what the container may open: %w", err)
	}
	list, err := parseRules(text)
	if err != nil {
		return nil, fmt.Errorf("read what the container may open in %s: %w", r.file.Name(), err)
	}
	return list, nil
}

// allows: one rule must have all of the access (match_exception in the kernel).
func (r rules) allows(number linux.DeviceNumber, access Access) (bool, error) {
	list, err := r.lines()
	for _, one := range list {
		if one.covers(number) && one.access&access == access {
			return true, nil
		}
	}
	return false, err
}

// allow: the kernel lets a cgroup have what the one above has, so it begins there.
func (r rules) allow(_ context.Context, number linux.DeviceNumber, access Access) error {
	list, err := r.lines()
	if err != nil {
		return err
	}
	if err := r.allowHere(list, number, access); err != nil {
		return err
	}
	// What the container's own rules allow, they allow below as well, or do not.
	added, err := r.read(number)
	if err != nil || added == 0 {
		return err
	}
	return allowBelow(r.file, list, number, access)
}

func (r rules) allowHere(list []rule, number linux.DeviceNumber, access Access) error {
	for _, one := range list {
		if one.covers(number) && one.access&access == access {
			return nil
		}
		// The kernel adds the access to this rule, of which the rest is the
		// container's.
		if one.isOf(number) {
			access &^= one.access
		}
	}
	if _, err := r.add(number, access); err != nil {
		return err
	}
	err := linux.WriteFileAt(r.file, "devices.allow", line(number, access))
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w: the cgroup above %s does not allow device %s itself", volume.ErrPrecondition, r.file.Name(), number)
	}
	if err != nil {
		return fmt.Errorf("let the container open device %s: %w", number, err)
	}
	return nil
}

// revoke: the kernel takes it from the cgroups below as well, but with it whatever else
// their rules for the device allow. So it begins with those, also with those that were made
// later, with the rules that this one had then.
func (r rules) revoke(_ context.Context, number linux.DeviceNumber, added Access) error {
	if err := revokeBelow(r.file, number, added); err != nil {
		return err
	}
	if err := linux.WriteFileAt(r.file, "devices.deny", line(number, added)); err != nil {
		return fmt.Errorf("keep the container from device %s: %w", number, err)
	}
	return nil
}

func line(number linux.DeviceNumber, access Access) string {
	return fmt.Sprintf("b %s %s", number, access)
}
