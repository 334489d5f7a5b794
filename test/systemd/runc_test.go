package systemd

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// startRunc starts a container of runc with the driver that Kubernetes has by default:
// systemd makes a scope for it, and a program, which runc then puts its own in place of.
func (m *machine) startRunc(t *testing.T, disk *rig.Disk) *unit {
	t.Helper()
	rig.RequireContainers(t)
	const dir = "/tmp/rawblock-test"
	m.run(t, "sh", "-ec", `mkdir -p "$0/rootfs/bin" && cp "$(command -v busybox)" "$0/rootfs/bin/" && ln -s busybox "$0/rootfs/bin/sleep"`, dir)
	write := m.command(rig.Context(t), "tee", dir+"/config.json")
	write.Stdin = strings.NewReader(runcConfig(t))
	rig.Must(t, write.Run())
	// The container must not hold pipes of ours.
	m.run(t, "sh", "-ec", `runc --systemd-cgroup run --detach --bundle "$0" rawblock-test </dev/null >"$0/log" 2>&1 || { cat "$0/log"; exit 1; }`, dir)
	m.afterwards(t, "runc", "--systemd-cgroup", "delete", "--force", "rawblock-test")
	m.afterwards(t, "rm", "-rf", dir)
	const name = "rawblock-test-container.scope"
	return &unit{m, name, m.run(t, "systemctl", "show", "--value", "--property=ControlGroup", name), disk.Number()}
}

// runcConfig is what runc itself makes for a container, which does nothing.
func runcConfig(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	rig.Must(t, exec.CommandContext(rig.Context(t), "runc", "spec", "--bundle", dir).Run())
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	rig.Must(t, err)
	var config struct {
		Version  string         `json:"ociVersion"`
		Process  map[string]any `json:"process"`
		Root     any            `json:"root"`
		Hostname string         `json:"hostname"`
		Mounts   any            `json:"mounts"`
		Linux    map[string]any `json:"linux"`
	}
	rig.Must(t, json.Unmarshal(text, &config))
	config.Process["terminal"], config.Process["args"] = false, []string{"/bin/sleep", "infinity"}
	config.Linux["cgroupsPath"] = "system.slice:rawblock-test:container"
	text, err = json.Marshal(config)
	rig.Must(t, err)
	return string(text)
}

func TestSystemdGrantInContainerOfRunc(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	unit := startMachine(t).startRunc(t, disk)
	// runc has put its program in the place of systemd's, which is back after this.
	if programs := unit.must(t, "programs", ""); strings.Contains(programs, ",") || strings.Contains(programs, "sd_devices") {
		t.Errorf("the programs are %s; want runc's alone", programs)
	}
	rules := unit.rules(t)
	unit.wantRefused(t, "rw")
	unit.must(t, "allow", "rw")
	unit.wantOpen(t, "rw")
	unit.shake(t)
	unit.wantOpen(t, "rw")
	unit.must(t, "revoke", "")
	unit.wantRefused(t, "r")
	if diff := cmp.Diff(rules, unit.rules(t)); diff != "" {
		t.Errorf("the rules are others than before (-before +now):\n%s", diff)
	}

	before, programs := unit.state(t), unit.must(t, "programs", "")
	unit.must(t, "allow", "r")
	unit.wantOpen(t, "r")
	unit.wantRefused(t, "rw")
	unit.must(t, "revoke", "")
	unit.wantState(t, before)
	if now := unit.must(t, "programs", ""); now != programs {
		t.Errorf("the programs were %s and are %s", programs, now)
	}
}
