package systemd

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// unit is a unit that runs in a machine.
type unit struct {
	*machine
	name   string
	cgroup string
	number linux.DeviceNumber
}

// startUnit starts a unit with properties that does nothing, and is about the disk.
func (m *machine) startUnit(t *testing.T, name string, disk *rig.Disk, properties ...string) *unit {
	t.Helper()
	// Without its dependencies by default, which would start what a machine starts.
	argv := []string{"systemd-run", "--unit=" + name, "--property=Delegate=yes", "--property=DefaultDependencies=no"}
	for _, property := range properties {
		argv = append(argv, "--property="+property)
	}
	if strings.HasSuffix(name, ".scope") {
		// The command itself is in the scope then, until it ends.
		command := m.command(rig.Context(t), append(argv, "--scope", "sleep", "infinity")...)
		rig.Must(t, command.Start())
		t.Cleanup(func() { command.Process.Kill(); command.Wait() })
	} else {
		m.run(t, append(argv, "sleep", "infinity")...)
	}
	m.afterwards(t, "systemctl", "stop", name)
	m.run(t, "sh", "-c", "for i in $(seq 100); do systemctl --quiet is-active \"$0\" && exit; sleep 0.1; done; systemctl status \"$0\"", name)
	return &unit{m, name, m.run(t, "systemctl", "show", "--value", "--property=ControlGroup", name), disk.Number()}
}

// do has the test binary do something in the machine, as the plugin would.
func (u *unit) do(t *testing.T, what, with string) (string, error) {
	t.Helper()
	return u.try(t, u.plugin(what, with)...)
}

func (u *unit) must(t *testing.T, what, with string) string {
	t.Helper()
	said, err := u.do(t, what, with)
	rig.Must(t, err)
	return said
}

// doWithoutSystemd does the same where systemd's sockets are not to be seen.
func (u *unit) doWithoutSystemd(t *testing.T, what, with string) (string, error) {
	t.Helper()
	hidden := []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs tmpfs /run/systemd && exec "$@"`, "sh"}
	return u.try(t, append(hidden, u.plugin(what, with)...)...)
}

// plugin is the command that does something with the unit's cgroup. The race detector
// waits for a second at the end of a program, unless it is told not to.
func (u *unit) plugin(what, with string) []string {
	return []string{"env", asPlugin + "=" + what, "GORACE=atexit_sleep_ms=0", "/run/self", u.cgroup, u.number.String(), with}
}

func (u *unit) wantOpen(t *testing.T, access string) {
	t.Helper()
	if _, err := u.do(t, "open", access); err != nil {
		t.Errorf("opening for %s: %v", access, err)
	}
}

func (u *unit) wantRefused(t *testing.T, access string) {
	t.Helper()
	if _, err := u.do(t, "open", access); err == nil || !strings.Contains(err.Error(), "operation not permitted") {
		t.Errorf("opening for %s: %v; want that it is not permitted", access, err)
	}
}

// rules are what systemd says that the unit may open. It turns their order about as it
// likes, which makes another program of the same meaning.
func (u *unit) rules(t *testing.T) []string {
	t.Helper()
	rules := strings.Split(u.run(t, "systemctl", "show", "--property=DeviceAllow", "--property=DevicePolicy", u.name), "\n")
	slices.Sort(rules)
	return rules
}

// state is all that says what the unit may open.
func (u *unit) state(t *testing.T) []string {
	t.Helper()
	var names []string
	for program := range strings.SplitSeq(u.must(t, "programs", ""), ", ") {
		names = append(names, strings.Fields(program)[0])
	}
	return append(u.rules(t), strings.Join(names, ", "), u.must(t, "grants", ""), u.must(t, "attributes", ""))
}

func (u *unit) wantState(t *testing.T, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, u.state(t)); diff != "" {
		t.Errorf("what the unit may open is another than before (-before +now):\n%s", diff)
	}
}

// shake has systemd make its device programs anew.
func (u *unit) shake(t *testing.T) {
	t.Helper()
	u.run(t, "systemctl", "daemon-reload")
	u.run(t, "systemctl", "set-property", "--runtime", u.name, "CPUWeight=50", "MemoryMax=1G", "TasksMax=100")
}

// driverOf is the name that the devices with a major number have (/proc/devices).
func driverOf(t *testing.T, number linux.DeviceNumber) string {
	t.Helper()
	list, err := os.ReadFile("/proc/devices")
	rig.Must(t, err)
	_, blocks, _ := strings.Cut(string(list), "Block devices:")
	for line := range strings.Lines(blocks) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == fmt.Sprint(number.Major) {
			return fields[1]
		}
	}
	t.Fatalf("no block device has the major number %d", number.Major)
	return ""
}

func TestSystemdGrantInUnit(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	own := "DeviceAllow=/dev/block/" + disk.Number().String() + " r"
	machine := startMachine(t)
	for name, test := range map[string]struct {
		unit       string
		properties []string
		reads      bool
	}{
		"service":                {"rawblock-1.service", []string{"DevicePolicy=closed"}, false},
		"scope":                  {"rawblock-2.scope", []string{"DevicePolicy=strict"}, false},
		"closed":                 {"rawblock-3.scope", []string{"DevicePolicy=closed"}, false},
		"as runc has it":         {"rawblock-4.scope", []string{"DevicePolicy=strict", "DeviceAllow=char-pts rwm", "DeviceAllow=/dev/char/1:3 rwm", "DeviceAllow=block-* m"}, false},
		"own rule":               {"rawblock-5.scope", []string{"DevicePolicy=strict", own, "DeviceAllow=/dev/char/1:3 rwm"}, true},
		"own rule in a service":  {"rawblock-6.service", []string{"DevicePolicy=closed", own}, true},
		"own rule for all disks": {"rawblock-7.scope", []string{"DevicePolicy=strict", "DeviceAllow=block-" + driverOf(t, disk.Number()) + " r"}, true},
		"name that is escaped":   {"_rawblock-8.service", []string{"DevicePolicy=closed"}, false},
		"name with a dash":       {`rawblock\x2d9.service`, []string{"DevicePolicy=closed"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			unit := machine.startUnit(t, test.unit, disk, test.properties...)
			unit.wantRefused(t, "rw")
			before, programs := unit.state(t), unit.must(t, "programs", "")
			unit.must(t, "allow", "rw")
			allowed := unit.state(t)
			if rule := "DeviceAllow=/dev/block/" + disk.Number().String() + " rw"; !slices.Contains(allowed, rule) {
				t.Errorf("there is no rule %s: %s", rule, allowed)
			}
			unit.must(t, "allow", "rw")
			unit.wantState(t, allowed)
			unit.wantOpen(t, "rw")
			unit.must(t, "revoke", "")
			if now := unit.must(t, "programs", ""); now != programs {
				t.Errorf("the programs were %s and are %s", programs, now)
			}
			unit.must(t, "allow", "rw")
			unit.shake(t)
			unit.wantOpen(t, "rw")
			unit.wantState(t, allowed)

			unit.must(t, "revoke", "")
			unit.must(t, "revoke", "")
			unit.wantState(t, before)
			unit.shake(t)
			unit.wantState(t, before)
			unit.wantRefused(t, "rw")
			if test.reads {
				unit.wantOpen(t, "r")
			}
		})
	}
}

// Why systemd is asked: of a program that is changed behind its back nothing is left
// but the program, which systemd does not know and never detaches.
func TestSystemdGrantBehindItsBackIsLost(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	unit := startMachine(t).startUnit(t, "rawblock-test.scope", disk, "DevicePolicy=strict")
	unit.must(t, "replace", "")
	unit.wantOpen(t, "rw")
	unit.shake(t)
	unit.wantRefused(t, "rw")
	if programs := unit.must(t, "programs", ""); strings.Count(programs, "sd_devices") < 2 {
		t.Errorf("the programs are %s; want the replaced one beside systemd's", programs)
	}
}

func TestSystemdCannotBeReached(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	unit := startMachine(t).startUnit(t, "rawblock-test.scope", disk, "DevicePolicy=strict")
	before := unit.state(t)
	if _, err := unit.doWithoutSystemd(t, "allow", "rw"); err == nil || !strings.Contains(err.Error(), "mount the host's /run/dbus/system_bus_socket") {
		t.Errorf("allowing without systemd: %v", err)
	}
	unit.wantState(t, before)
	unit.must(t, "allow", "rw")
	allowed := unit.state(t)
	if _, err := unit.doWithoutSystemd(t, "revoke", ""); err == nil || !strings.Contains(err.Error(), "mount the host's /run/dbus/system_bus_socket") {
		t.Errorf("revoking without systemd: %v", err)
	}
	unit.wantState(t, allowed)
	unit.must(t, "revoke", "")
	unit.wantState(t, before)
}

// A unit that has no rule lets everything pass, until it has one. It gets none.
func TestSystemdUnitWithoutRules(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	unit := startMachine(t).startUnit(t, "rawblock-test.scope", disk)
	unit.must(t, "attach", "runtime")
	before, programs := unit.state(t), unit.must(t, "programs", "")
	unit.must(t, "allow", "rw")
	if rules := unit.rules(t); !slices.Equal(rules, before[:len(rules)]) {
		t.Errorf("the rules are %s now", rules)
	}
	unit.shake(t)
	unit.wantOpen(t, "rw")
	unit.must(t, "revoke", "")
	unit.wantState(t, before)
	if now := unit.must(t, "programs", ""); now != programs {
		t.Errorf("the programs were %s and are %s", programs, now)
	}
}

// A runtime may attach a program beside systemd's: both must let the device pass.
func TestSystemdBesideAnotherProgram(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	unit := startMachine(t).startUnit(t, "rawblock-test.scope", disk, "DevicePolicy=strict")
	unit.must(t, "attach", "runtime")
	before := unit.state(t)
	unit.must(t, "allow", "rw")
	unit.shake(t)
	unit.wantOpen(t, "rw")
	unit.must(t, "revoke", "")
	unit.wantState(t, before)
	unit.wantRefused(t, "r")
}

// A systemd in a container has units that are called as the host's are. What is asked
// for the one is none of the other's business.
func TestSystemdUnitOfAContainer(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	machine := startMachine(t)
	host := machine.startUnit(t, "rawblock-db.service", disk, "DevicePolicy=closed")
	container := machine.startUnit(t, "rawblock-container.scope", disk)
	inner := *container
	inner.cgroup += host.cgroup
	machine.run(t, "sh", "-ec", `mkdir -p "$0"; sleep infinity >/dev/null 2>&1 & echo $! >"$0/cgroup.procs"`, "/sys/fs/cgroup"+inner.cgroup)
	inner.must(t, "attach", "sd_devices") // As that systemd would.
	before, innerBefore := host.state(t), inner.state(t)
	if _, err := inner.do(t, "allow", "rw"); err == nil || !strings.Contains(err.Error(), "a systemd that does not run this machine") {
		t.Errorf("allowing in a unit of a container: %v", err)
	}
	host.wantState(t, before)
	inner.wantState(t, innerBefore)
	host.wantRefused(t, "rw")
}
