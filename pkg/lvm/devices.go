package lvm

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// codeUsage is the exit code of a command with an option that lvm does not know
// (EINVALID_CMD_LINE in tools/errors.h of lvm2).
const codeUsage = 3

// validNode is the form of the nodes that the kernel makes; nothing in it means anything
// in a list of devices or in a pattern, but the dot.
var validNode = regexp.MustCompile(`^/dev/[A-Za-z0-9_.!:/-]+$`)

// errNoDevice says that lvm may look at nothing. It does not run then: without a
// restriction it would look at everything.
var errNoDevice = fmt.Errorf("%w: this node has no device that lvm may look at: each is, or lies on, one that volumes are handed out from", volume.ErrPrecondition)

// runOn runs a command on some devices.
func (l *LVM) runOn(ctx context.Context, devices []string, settings, command string, args ...string) ([]byte, error) {
	if err := check(validNode, "device", devices...); err != nil {
		return nil, err
	}
	if len(devices) == 0 {
		return nil, errNoDevice
	}
	if !l.old.Load() {
		stdout, err := l.start(ctx, command, slices.Concat([]string{"--devices", strings.Join(devices, ",")}, withSettings(settings), args))
		var failed *Error
		if !errors.As(err, &failed) || failed.Code != codeUsage || !strings.Contains(failed.Message, "--devices") {
			return stdout, err
		}
		l.old.Store(true)
	}
	return l.start(ctx, command, append(withSettings(settings+filter(devices)), args...))
}

func withSettings(settings string) []string {
	if settings == "" {
		return nil
	}
	return []string{"--config", settings}
}

// filter is what an lvm without --devices has for it (lvm.conf(5), devices/global_filter).
// lvmetad, of 2.02, would answer from what it had seen without.
func filter(devices []string) string {
	var patterns []string
	for _, device := range devices {
		patterns = append(patterns, fmt.Sprintf(`"a|^%s$|"`, strings.ReplaceAll(device, ".", "[.]")))
	}
	return ` devices{global_filter=[` + strings.Join(append(patterns, `"r|.*|"`), ",") + `]} global{use_lvmetad=0}`
}

func (l *LVM) start(ctx context.Context, command string, args []string) ([]byte, error) {
	stdout, err := l.programs.Run(ctx, program.Command{Name: "lvm", Args: append([]string{command}, args...)})
	var exit *program.ExitError
	switch {
	case errors.As(err, &exit):
		return nil, &Error{command, exit.Code, oneLine(exit.Stderr)}
	case errors.Is(err, program.ErrNotInstalled):
		return nil, fmt.Errorf("%w: a pool of logical volumes needs lvm; install lvm2 on this node: %w", volume.ErrPrecondition, err)
	}
	return stdout, err
}

// Member is a device with a part of a volume group (a physical volume).
type Member struct {
	// Device is its node, Group the name of its group, GroupUUID the group's UUID.
	Device, Group, GroupUUID string
}

// Members returns what parts of volume groups are on some devices. What is read there is
// not believed: use it to say what is refused, or to tell two groups with one name apart.
func (l *LVM) Members(ctx context.Context, devices []string) ([]Member, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	text, err := l.runOn(ctx, devices, settings, "pvs", "--reportformat", "json", "--options", "pv_name,vg_name,vg_uuid")
	if err != nil {
		return nil, err
	}
	found, err := parseSections(text)
	if err != nil {
		return nil, err
	}
	var members []Member
	for _, row := range found.Disks {
		members = append(members, Member{row["pv_name"], row["vg_name"], row["vg_uuid"]})
	}
	return members, nil
}
